"""Other methods through the same kernel: ``weight`` of ``functional.semckd_loss`` is any tensor [B, S, T].

``projected[i][j]`` is student layer i brought to the shape of teacher layer j, ``target[i][j]`` that layer's map.
"""

import torch
from torch import Tensor

from semckd_kernels.functional import semckd_loss

Maps = list[list[Tensor]]


def fitnet(projected: Maps, target: Maps, i: int, j: int) -> Tensor:
    """One pair (Romero et al., 2015): mean squared error of hint layer j and guided layer i."""
    # the list of one pair; its weight is one
    return semckd_loss([[projected[i][j]]], [[target[i][j]]], projected[i][j].new_ones(len(projected[i][j]), 1, 1))


def levels(projected: Maps, target: Maps, of_level: list[float]) -> Tensor:
    """Level i with level i, weighted, as ReviewKD (Chen et al., 2021) compares its fused levels."""
    batch, count = len(projected[0][0]), len(of_level)
    # the loss is a mean over student layers: the factor makes it the weighted sum of the levels
    weight = count * torch.diag(torch.tensor(of_level)).expand(batch, count, count)
    return semckd_loss(projected, target, weight.contiguous())


def afd(projected: Maps, target: Maps, query: Tensor, key: Tensor) -> Tensor:
    """Attention-based feature distillation (Ji et al., 2021): softmax over student layers for each teacher layer.

    query [B, T, d] of the teacher's layers and key [B, S, d] of the student's are yours to compute; gradients reach
    them through the weight.
    """
    energy = torch.einsum("btd,bsd->bst", query, key) / query.shape[-1] ** 0.5
    # AFD sums over both lists of layers, where this loss divides by the student's count
    return len(projected) * semckd_loss(projected, target, energy.softmax(1))
