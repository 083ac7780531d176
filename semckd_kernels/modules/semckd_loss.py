"""The drop-in for the reference loss module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..backends import check_name
from ..checks import NestedMaps
from ..functional import semckd_loss


class SemCKDLoss(nn.Module):
    r"""SemCKD's loss: attention-weighted squared errors of all pairs of layers, in one kernel each way.

    .. math::
        L = \frac{1}{B S} \sum_{b,i,j} \alpha_{bij} \frac{1}{N_{ij}} \lVert s_{ij}[b] - t_{ij}[b] \rVert^2

    A drop-in for the loss module of the reference code: same call, same value, same gradients, on any device.

    Args:
        backend: see :func:`semckd_kernels.available_backends`; None takes the fastest that serves the tensors.
        inplace_backward: write gradients over the student projections, see
            :func:`semckd_kernels.functional.semckd_loss`.

    Call:
        ``loss(s_value, f_target, weight)`` with S lists of T maps ``[B, C_j, h_ij, w_ij]`` on both sides and
        ``weight`` ``[B, S, T]``, just what :class:`semckd_kernels.SelfA` returns; gives the scalar loss.

    Raises:
        ValueError: there is no backend of that name. Calls raise as :func:`semckd_kernels.functional.semckd_loss`.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> s = [[torch.randn(4, 8, 6, 6, requires_grad=True) for _ in range(2)]]
        >>> t = [[torch.randn(4, 8, 6, 6) for _ in range(2)]]
        >>> loss = sk.SemCKDLoss()(s, t, torch.full((4, 1, 2), 0.5))
        >>> loss.backward()

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
    """

    if TYPE_CHECKING:

        def __call__(self, s_value: NestedMaps, f_target: NestedMaps, weight: Tensor) -> Tensor: ...

    def __init__(self, backend: str | None = None, inplace_backward: bool = False) -> None:
        super().__init__()
        check_name(backend, "backend")
        self.backend = backend
        self.inplace_backward = inplace_backward

    def forward(self, s_value: NestedMaps, f_target: NestedMaps, weight: Tensor) -> Tensor:
        return semckd_loss(s_value, f_target, weight, backend=self.backend, inplace_backward=self.inplace_backward)

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}, inplace_backward={self.inplace_backward}"
