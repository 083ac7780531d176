"""SemCKD in plain PyTorch, layer by layer and pair by pair, as anyone would write the formulas.

It is three things at once: the oracle that every kernel is tested against (in fp64), the baseline that every
benchmark divides by, and the fallback for devices that no kernel serves. The only liberty taken with the textbook
form is that half precision maps are compared in fp32, as autocast does for every squared error.

Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dtypes import acc_dtype


def check_projection(i: int, j: int, value: Tensor, target: Tensor) -> None:
    """Raises ValueError unless a projection's result fits its target: broadcasting would give a wrong error."""
    if value.shape != target.shape or value.device != target.device:
        raise ValueError(
            f"the projection of pair ({i}, {j}) must give {list(target.shape)} on {target.device}, got "
            f"{list(value.shape)} on {value.device}: its modules are not those it was made with"
        )


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
        acc = acc_dtype(torch.promote_types(s_q.dtype, t_q.dtype))
        squared = F.mse_loss(s_q.to(acc), t_q.to(acc), reduction="none")
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


def semckd(
    feat_s: Sequence[Tensor],
    feat_t: Sequence[Tensor],
    queries: Sequence[Callable[[Tensor], Tensor]],
    keys: Sequence[Callable[[Tensor], Tensor]],
    projections: Sequence[Sequence[Callable[[Tensor], Tensor]]],
    batch_size: int,
    soft: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole criterion: similarities, attention, projections and the pair loss.

    Args:
        feat_s: S student maps, ``[B, c, h, w]``.
        feat_t: T teacher maps, ``[B, C, H, W]``.
        queries: S modules from similarities ``[B, Bq]`` to ``[B, d]``; keys: T of them.
        projections: S lists of T modules from student maps to ``[B, C, h, w]``.
        batch_size: ``Bq``, to which the similarities of a smaller batch are padded with zeros.
        soft: divides the energies.

    Returns:
        The scalar loss, the attention ``[B, S, T]``, and the pair errors ``[B, S, T]``.
    """
    weight = attention(feat_s, feat_t, queries, keys, batch_size, soft)
    s_value, f_target = [], []
    for i, (row, x) in enumerate(zip(projections, feat_s, strict=True)):
        for j, (project, y) in enumerate(zip(row, feat_t, strict=True)):
            size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
            s_value.append(project(F.adaptive_avg_pool2d(x, size)))
            f_target.append(F.adaptive_avg_pool2d(y, size))
            check_projection(i, j, s_value[-1], f_target[-1])
    loss, mse = pair_loss(s_value, f_target, weight, False)
    return loss, weight, mse


def attention(
    feat_s: Sequence[Tensor],
    feat_t: Sequence[Tensor],
    queries: Sequence[Callable[[Tensor], Tensor]],
    keys: Sequence[Callable[[Tensor], Tensor]],
    batch_size: int,
    soft: float,
) -> Tensor:
    """``alpha [B, S, T]``; arguments as :func:`semckd`."""
    # full precision: similarities of ordinary activations overflow fp16
    with torch.autocast(feat_s[0].device.type, enabled=False):
        query = torch.stack([mlp(similarity(x, batch_size)) for mlp, x in zip(queries, feat_s, strict=True)], 1)
        key = torch.stack([mlp(similarity(x, batch_size)) for mlp, x in zip(keys, feat_t, strict=True)], 2)
        return torch.softmax(torch.bmm(query, key) / soft, -1)


def similarity(x: Tensor, batch_size: int) -> Tensor:
    """``G = R(x) R(x)^T`` in fp32 or fp64, padded with zeros to ``[B, batch_size]``."""
    rows = x.flatten(1).to(acc_dtype(x.dtype))
    return F.pad(rows @ rows.t(), (0, batch_size - len(rows)))
