"""The 3x3 convolution of a projection and its backward, in Winograd's form (``csrc/cpu/winograd/winograd.cpp``)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtypes import acc_dtype
from ...stages.workspace import Workspace, gradient_of


def conv3x3(
    h: Tensor, weight: Tensor, statistics: bool, workspace: Workspace
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """:meth:`semckd_kernels.stages.interface.Stages.conv3x3`; ``z`` is cut from the workspace.

    Mean and variance are those of z before it is rounded to the map's type.
    """
    acc = acc_dtype(h.dtype)
    z = workspace.empty(h.shape, h.dtype)
    mean = h.new_empty(h.shape[-1], dtype=acc) if statistics else None
    variance = torch.empty_like(mean) if mean is not None else None
    torch.ops.semckd_cpu.winograd_conv3x3(h, weight.detach().to(acc), _scratch(h, False, workspace), z, mean, variance)
    return z, mean, variance


def conv3x3_backward(
    h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, a: Tensor, b: Tensor, c: Tensor, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """:meth:`semckd_kernels.stages.interface.Stages.conv3x3_backward`; ``d_h1`` is cut from the workspace."""
    acc = acc_dtype(h.dtype)
    d_h1 = workspace.empty(h.shape, h.dtype)
    d_weight = gradient_of(weight, acc)
    scratch = _scratch(h, True, workspace)
    given = h, weight.detach().to(acc), z, d_h2, a, b, c
    torch.ops.semckd_cpu.winograd_conv3x3_backward(*given, scratch, d_h1, d_weight)
    return d_h1, d_weight


def _scratch(h: Tensor, backward: bool, workspace: Workspace) -> Tensor:
    return workspace.empty((torch.ops.semckd_cpu.winograd_scratch(h, backward),), torch.uint8)
