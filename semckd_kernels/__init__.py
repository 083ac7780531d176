"""Fused kernels for SemCKD, cross-layer knowledge distillation with semantic calibration.

    import semckd_kernels as sk

    criterion = sk.SemCKD(batch_size, s_n, t_n)
    loss = criterion(feat_s, feat_t).loss

or, beside code that has the reference's attention module and loss module:

    attention = sk.SelfA(len(s_n), len(t_n), batch_size, s_n, t_n)
    loss = sk.SemCKDLoss()(*attention(feat_s, feat_t))

The rooms of the package and the arrows between them are drawn in ``docs/how.md``.
"""

import torch as _torch

if tuple(int(part) for part in _torch.__version__.split(".")[:2]) < (2, 11):
    raise ImportError(f"semckd_kernels needs torch >= 2.11, found {_torch.__version__}: pip install -U torch")

from . import functional
from ._version import VERSION
from .backends import Availability, available_backends
from .features import FeatureMaps, channels
from .modules import Distiller, DistillerOutput, SelfA, SemCKD, SemCKDLoss, SemCKDOutput
from .pair_loss.operators import register_compiled
from .teacher import prepare_teacher

# torch.ops.semckd is there from now on; where it cannot be, available_backends says why
register_compiled()

__version__ = VERSION
__all__ = [
    "Availability",
    "Distiller",
    "DistillerOutput",
    "FeatureMaps",
    "SelfA",
    "SemCKD",
    "SemCKDLoss",
    "SemCKDOutput",
    "available_backends",
    "channels",
    "functional",
    "prepare_teacher",
]
