"""SemCKD's pair loss in plain PyTorch, one pair at a time, as anyone would write the formulas.

It is three things at once: the oracle that every kernel is tested against (in fp64), the baseline that every
benchmark divides by, and the fallback for devices that no kernel serves. The only liberty taken with the textbook
form is that half precision maps are compared in fp32, as autocast does for every squared error.

Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_mse(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each sample of each pair.

    ``D[b, q] = mean_e (s[q][b, e] - t[q][b, e])^2``

    Args:
        s: Q student projections, ``[B, ...]``.
        t: Q teacher maps of the same shapes.

    Returns:
        ``[B, Q]``, fp32 (fp64 where the maps are fp64).
    """
    errors = []
    for s_q, t_q in zip(s, t, strict=True):
        wide = torch.promote_types(torch.promote_types(s_q.dtype, t_q.dtype), torch.float32)
        squared = F.mse_loss(s_q.to(wide), t_q.to(wide), reduction="none")
        errors.append(squared.flatten(1).mean(1))
    return torch.stack(errors, 1)


def pair_loss(s: Sequence[Tensor], t: Sequence[Tensor], weight: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
    """Pair errors, weighted for each sample and added up.

    ``loss = 1 / (B * S) * sum_bij alpha[b, i, j] * D[b, i, j]`` where ``alpha`` is ``weight``, or its softmax over
    the teacher layers ``j``.

    Args:
        s: Q = S * T student projections in row-major ``(i, j)`` order, ``[B, ...]``.
        t: Q teacher maps of the same shapes.
        weight: ``[B, S, T]``.
        softmax: whether ``weight`` holds energies instead of weights.

    Returns:
        The scalar loss and ``D``, ``[B, S, T]``.
    """
    batch, s_layers, _ = weight.shape
    mse = pair_mse(s, t).view_as(weight)
    alpha = torch.softmax(weight, -1) if softmax else weight
    # an empty batch has zero loss, and gradients of zero elements
    return (alpha * mse).sum() / max(batch * s_layers, 1), mse
