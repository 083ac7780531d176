"""Fused kernels for SemCKD, cross-layer knowledge distillation with semantic calibration.

    import semckd_kernels as sk

    attention = sk.SelfA(len(s_n), len(t_n), batch_size, s_n, t_n)
    loss = sk.SemCKDLoss()(*attention(feat_s, feat_t))

Layers, top down: ``modules`` (options, parameters) -> ``functional`` (checks, autograd) -> ``ops`` (operators) ->
``backends`` -> ``_triton``, ``csrc/cuda``, ``csrc/cpu``, ``reference``.
"""

import torch as _torch

if tuple(int(part) for part in _torch.__version__.split(".")[:2]) < (2, 11):
    raise ImportError(f"semckd_kernels needs torch >= 2.11, found {_torch.__version__}: pip install -U torch")

from . import functional, ops
from .backends import Availability, available_backends
from .modules import SelfA, SemCKDLoss

# torch.ops.semckd is there from now on; where it cannot be, available_backends says why
ops.load_compiled()

__version__ = "0.1.0"
__all__ = ["Availability", "SelfA", "SemCKDLoss", "available_backends", "functional"]
