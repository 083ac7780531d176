"""Semantic mismatch: how far apart the sample similarities of associated student and teacher layers are.

The paper (Chen et al., AAAI 2021, table 3) compares methods by such a score, but no code of it was published. **This is
our reading of it**, with its choices as parameters: numbers of two runs compare with each other, not with the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Distance = Literal["frobenius", "l1"]
Similarity = Literal["gram", "cosine"]
Weighting = Literal["auto", "attention", "position", "uniform"]
DISTANCES, SIMILARITIES, WEIGHTINGS = get_args(Distance), get_args(Similarity), get_args(Weighting)


def similarity(x: Tensor, kind: Similarity = "gram") -> Tensor:
    r"""Similarity of the samples of a batch, each row of length 1.

    ``gram``: :math:`G = R(x) R(x)^T` as SemCKD's attention sees it, ``cosine``: the same with the rows of ``R(x)`` at
    length 1 first, so that neither the size of a map nor that of a single sample counts. Then each row of G is divided
    by its L2 norm (Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equation 2): a map times
    a constant has the same similarities. A row of zeros stays zero.

    Args:
        x: a map, ``[B, c, h, w]`` or ``[B, N, c]``.
        kind: see above.

    Returns:
        ``[B, B]``, fp64.
    """
    rows = x.flatten(1).double()
    if kind == "cosine":
        rows = _unit_rows(rows)
    return _unit_rows(rows @ rows.T)


def layer_distance(
    feat_s: Sequence[Tensor],
    feat_t: Sequence[Tensor],
    distance: Distance = "frobenius",
    kind: Similarity = "gram",
) -> Tensor:
    r"""The distance of each student layer from each teacher layer on one batch.

    .. math::
        d_{ij} = \Big(\frac{1}{B} \sum_b \lVert \hat G^s_i[b] - \hat G^t_j[b] \rVert_2^2 \Big)^{1/2}
        \quad\text{(frobenius)}, \qquad
        d_{ij} = \frac{1}{B} \sum_b \lVert \hat G^s_i[b] - \hat G^t_j[b] \rVert_1 \quad\text{(l1)}

    with :math:`\hat G` of :func:`similarity`: the Frobenius norm over :math:`\sqrt B`, or the mean L1 norm of a row, so
    that smaller batches are comparable. It is 0 for equal layers; frobenius is at most 2, and at most
    :math:`\sqrt 2` for maps after a ReLU.

    Args:
        feat_s: S student maps of B samples.
        feat_t: T teacher maps of the same samples.
        distance, kind: see above.

    Returns:
        ``[S, T]``, fp64.
    """
    teacher = [similarity(y, kind) for y in feat_t]
    result = torch.empty(len(feat_s), len(teacher), dtype=torch.float64)
    for i, x in enumerate(feat_s):
        student = similarity(x, kind)
        for j, y in enumerate(teacher):
            rows = student - y
            by_row = rows.square().sum(1) if distance == "frobenius" else rows.abs().sum(1)
            mean = by_row.mean()
            result[i, j] = (mean.sqrt() if distance == "frobenius" else mean).cpu()
    return result


def by_position(students: int, teachers: int) -> Tensor:
    """One-hot weights ``[S, T]`` that pair layers by their place: first with first, last with last, even between.

    A single student layer is paired with the teacher's last.
    """
    weight = torch.zeros(students, teachers, dtype=torch.float64)
    for i in range(students):
        share = i / (students - 1) if students > 1 else 1.0
        # halves go up, to the more semantic layer
        weight[i, int(share * (teachers - 1) + 0.5)] = 1.0
    return weight


@dataclass(frozen=True)
class Mismatch:
    """Mean distance and weight of each pair over the samples of a data set, ``[S, T]``, and the score of the whole.

    The score weighs within each batch: where attention moves from batch to batch, it is not quite what ``distance`` and
    ``weight`` give.
    """

    score: float
    distance: Tensor
    weight: Tensor
    samples: int


def measure(
    batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor], Tensor]],
    distance: Distance = "frobenius",
    kind: Similarity = "gram",
) -> Mismatch:
    r"""The semantic mismatch of a student and its teacher over batches.

    .. math::
        \text{score} = \sum_n \frac{B_n}{\sum_m B_m} \cdot
        \frac{\sum_{ij} w^{(n)}_{ij} \, d^{(n)}_{ij}}{\sum_{ij} w^{(n)}_{ij}}

    Args:
        batches: student maps, teacher maps, and weights ``[S, T]`` (or ``[B, S, T]``, which are averaged) of each.
        distance, kind: see :func:`layer_distance`.

    Raises:
        ValueError: there is no sample.
    """
    samples, sums = 0, [torch.zeros(()), torch.zeros(()), torch.zeros(())]
    for feat_s, feat_t, weight in batches:
        count = len(feat_s[0])
        mean = weight.double().cpu()
        mean = mean.mean(0) if mean.dim() == 3 else mean
        apart = layer_distance(feat_s, feat_t, distance, kind)
        values = ((mean * apart).sum() / mean.sum(), apart, mean)
        sums = [total + count * value for total, value in zip(sums, values, strict=True)]
        samples += count
    if not samples:
        raise ValueError("batches must hold at least one sample, got none")
    score, apart, mean = (total / samples for total in sums)
    return Mismatch(float(score), apart, mean, samples)


def _unit_rows(x: Tensor) -> Tensor:
    norm = x.norm(dim=1, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)
