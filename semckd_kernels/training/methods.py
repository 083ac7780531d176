r"""Loss terms of a training step, and the five methods made of them.

``total = ce_weight * CE + kd_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + beta * L_SemCKD``

==========  ======================================================================================================
``ce``      the student alone: cross-entropy with the labels
``kd``      and knowledge distillation of the logits
``semckd``  and SemCKD
``equal``   SemCKD with its attention switched off: with an infinite temperature of the attention every energy is 0 and
            every weight exactly ``1 / T_layers``
``pair``    SemCKD between one student layer and one teacher layer: the softmax over one layer is 1. The value is that
            of one-hot weights over S student layers, ``1 / (B S) sum_b D[b, i, j]``, times S, since the mean is over
            the one student layer that takes part; and only one projection is trained
==========  ======================================================================================================

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021: T = 4, both weights 1, beta = 400 on
CIFAR-100 and 50 on ImageNet; ``pair`` is its experiment on negative regularisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import SemCKD
from ..logits import kd_loss
from .config import MethodConfig
from .models import Output


class Loss(NamedTuple):
    """The loss that a step minimises, its terms before they are weighted (scalars, by name), and SemCKD's attention."""

    total: Tensor
    terms: dict[str, Tensor]
    weight: Tensor | None = None  # [B, S, T], detached


class Criterion(nn.Module):
    """The loss of a training step as a weighted sum of terms; a term of weight zero is not computed.

    Args:
        ce_weight: weight of the cross-entropy with the labels.
        kd_weight: weight of :func:`kd_loss`.
        temperature: its T.
        beta: weight of ``semckd``.
        semckd: the SemCKD term, where beta is not zero; its parameters train together with the student's.
        pair: the student and the teacher layer that ``semckd`` is given; all of them where None.
        kd_standardize: KD of standardized logits.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
        beta: float = 0.0,
        semckd: SemCKD | None = None,
        pair: tuple[int, int] | None = None,
        kd_standardize: bool = False,
    ) -> None:
        super().__init__()
        if beta and semckd is None:
            raise ValueError("semckd must be given where beta is not zero")
        self.ce_weight, self.kd_weight, self.temperature, self.beta = ce_weight, kd_weight, temperature, beta
        self.semckd, self.pair, self.kd_standardize = semckd, pair, kd_standardize

    @property
    def needs_teacher(self) -> bool:
        return bool(self.kd_weight or self.beta)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss."""
        return {"ce": self.ce_weight, "kd": self.kd_weight, "semckd": self.beta}

    @property
    def terms(self) -> list[str]:
        """Names of the terms that are computed, in their order."""
        return [name for name, weight in (("ce", 1), ("kd", self.kd_weight), ("semckd", self.beta)) if weight]

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Loss:
        """Outputs of both networks for a batch and its labels ``[B]`` to the loss; no teacher where none is needed."""
        terms = {"ce": F.cross_entropy(student.logits, labels)}
        total = self.ce_weight * terms["ce"]
        weight = None
        if self.needs_teacher and teacher is None:
            raise ValueError("teacher must be given for a distillation loss")
        if self.kd_weight and teacher is not None:
            terms["kd"] = kd_loss(student.logits, teacher.logits, self.temperature, self.kd_standardize)
            total = total + self.kd_weight * terms["kd"]
        if self.semckd is not None and teacher is not None:
            maps = student.maps, teacher.maps
            if self.pair is not None:
                i, j = self.pair
                maps = [student.maps[i]], [teacher.maps[j]]
            terms["semckd"], weight, _ = self.semckd(*maps)
            total = total + self.beta * terms["semckd"]
        return Loss(total, terms, weight)


def channels(shapes: Sequence[torch.Size]) -> list[int]:
    """Channels of maps ``[c, h, w]`` or tokens ``[N, c]``, without the batch."""
    return [shape[0] if len(shape) == 3 else shape[-1] for shape in shapes]


def build(
    method: MethodConfig,
    batch_size: int,
    student_shapes: Sequence[torch.Size] = (),
    teacher_shapes: Sequence[torch.Size] = (),
) -> Criterion:
    """The criterion of a method, with fresh parameters.

    Args:
        method: see the table above.
        batch_size: samples of one process that the attention is built for.
        student_shapes, teacher_shapes: of the maps, without the batch: ``[c, h, w]`` or ``[N, c]``.

    Raises:
        ValueError: the pair does not exist.
    """
    if method.name == "ce":
        return Criterion(method.ce_weight)
    if method.name == "kd":
        return Criterion(method.ce_weight, method.kd_weight, method.temperature, kd_standardize=method.kd_standardize)
    s_n, t_n, pair = channels(student_shapes), channels(teacher_shapes), None
    if method.name == "pair":
        assert method.pair is not None
        i, j = pair = method.pair
        if not (0 <= i < len(s_n) and 0 <= j < len(t_n)):
            raise ValueError(
                f"pair must name one of {len(s_n)} student layers and one of {len(t_n)} teacher layers, both counted "
                f"from 0, got {i} {j}"
            )
        s_n, t_n = [s_n[i]], [t_n[j]]
    soft = math.inf if method.name == "equal" else method.soft
    semckd = SemCKD(batch_size, s_n, t_n, factor=method.factor, soft=soft, backend=method.backend)
    return Criterion(
        method.ce_weight,
        method.kd_weight,
        method.temperature,
        method.beta,
        semckd,
        pair,
        kd_standardize=method.kd_standardize,
    )


def layer_names(criterion: Criterion, student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Student and teacher layer of each weight of the attention, row by row; empty without SemCKD."""
    if criterion.semckd is None:
        return []
    if criterion.pair is not None:
        student, teacher = [student[criterion.pair[0]]], [teacher[criterion.pair[1]]]
    return [(s, t) for s in student for t in teacher]
