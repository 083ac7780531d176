"""Loss terms of a training step: cross-entropy (CE), knowledge distillation (KD) and SemCKD.

``total = ce_weight * CE + kd_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + beta * L_SemCKD``

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021: T = 4, both weights 1, beta = 400 on
CIFAR-100 and 50 on ImageNet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from semckd_kernels import SemCKD

from .models import Output


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of logits.

    ``T^2 / B * sum_b sum_c p[b, c] * (log p[b, c] - log q[b, c])`` with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``: the divergence is summed over classes and averaged over the batch, and ``T^2`` keeps
    the size of its gradient independent of the temperature.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Args:
        student_logits: ``[B, classes]``.
        teacher_logits: ``[B, classes]``.
        temperature: T.

    Returns:
        A scalar.
    """
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


class Loss(NamedTuple):
    """The loss that a step minimises, and its terms before they are weighted (scalars, by name)."""

    total: Tensor
    terms: dict[str, Tensor]


class Criterion(nn.Module):
    """The loss of a training step as a weighted sum of terms; a term of weight zero is not computed.

    Args:
        ce_weight: weight of the cross-entropy with the labels.
        kd_weight: weight of :func:`kd_loss`.
        temperature: its T.
        beta: weight of ``semckd``.
        semckd: the SemCKD term, where beta is not zero; its parameters train together with the student's.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
        beta: float = 0.0,
        semckd: SemCKD | None = None,
    ) -> None:
        super().__init__()
        if beta and semckd is None:
            raise ValueError("semckd must be given where beta is not zero")
        self.ce_weight, self.kd_weight, self.temperature, self.beta = ce_weight, kd_weight, temperature, beta
        self.semckd = semckd

    @property
    def needs_teacher(self) -> bool:
        return bool(self.kd_weight or self.beta)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Loss:
        """Outputs of both networks for a batch and its labels ``[B]`` to the loss; no teacher where none is needed."""
        terms = {"ce": F.cross_entropy(student.logits, labels)}
        total = self.ce_weight * terms["ce"]
        if self.needs_teacher and teacher is None:
            raise ValueError("teacher must be given for a distillation loss")
        if self.kd_weight and teacher is not None:
            terms["kd"] = kd_loss(student.logits, teacher.logits, self.temperature)
            total = total + self.kd_weight * terms["kd"]
        if self.beta and self.semckd is not None and teacher is not None:
            terms["semckd"] = self.semckd(student.maps, teacher.maps).loss
            total = total + self.beta * terms["semckd"]
        return Loss(total, terms)
