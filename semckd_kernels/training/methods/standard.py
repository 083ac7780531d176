r"""The five methods of this package.

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

import dataclasses
import math

import torch.nn.functional as F
from torch import Tensor

from ... import SemCKD, SemCKDOutput
from ...logits import kd_loss
from .criterion import channels
from .method import Given, Layout, Method, MethodConfig, Term, register


def softmax_temperature(method: MethodConfig) -> float:
    """That of a method's attention: infinite where all weights are equal."""
    return math.inf if method.record.association == "uniform" else method.soft


def _cross_entropy(given: Given) -> Tensor:
    return F.cross_entropy(given.student.logits, given.labels, label_smoothing=given.method.label_smoothing)


def _kd(given: Given) -> Tensor:
    method = given.method
    return kd_loss(given.student.logits, given.teacher.logits, method.temperature, method.kd_standardize)


def _semckd(given: Given) -> SemCKDOutput:
    found: SemCKDOutput = given.module(given.student.maps, given.teacher.maps)
    return found


def _semckd_of_pair(given: Given) -> SemCKDOutput:
    i, j = _pair(given.method)
    found: SemCKDOutput = given.module([given.student.maps[i]], [given.teacher.maps[j]])
    return found


def _build_semckd(layout: Layout) -> SemCKD:
    method, s_n, t_n = layout.method, channels(layout.student_shapes), channels(layout.teacher_shapes)
    if method.record.association == "pair":
        i, j = _pair(method)
        if not (0 <= i < len(s_n) and 0 <= j < len(t_n)):
            raise ValueError(
                f"pair must name one of {len(s_n)} student layers and one of {len(t_n)} teacher layers, both counted "
                f"from 0, got {i} {j}"
            )
        s_n, t_n = [s_n[i]], [t_n[j]]
    soft = softmax_temperature(method)
    return SemCKD(layout.batch_size, s_n, t_n, factor=method.factor, soft=soft, backend=method.backend)


def _pair(method: MethodConfig) -> tuple[int, int]:
    assert method.pair is not None
    return method.pair


CE = Term("ce", "cross-entropy", "ce_weight", _cross_entropy, options=("label_smoothing",), needs_teacher=False)
KD_TERM = Term("kd", "KD", "kd_weight", _kd, options=("temperature", "kd_standardize"))
SEMCKD_TERM = Term(
    "semckd",
    "SemCKD",
    "beta",
    _semckd,
    _build_semckd,
    options=("factor", "soft", "backend"),
    association="attention",
)
# an attention that is switched off, or whose softmax is over one layer, has neither width nor temperature
EQUAL_TERM = dataclasses.replace(SEMCKD_TERM, options=("backend",), association="uniform")
PAIR_TERM = dataclasses.replace(SEMCKD_TERM, compute=_semckd_of_pair, options=("backend", "pair"), association="pair")

ALONE = Method("ce", "student alone", "trains the student alone (and teachers)", (CE,))
KD = Method("kd", "KD", "adds KD of the logits", (CE, KD_TERM))
SEMCKD = Method("semckd", "SemCKD", "adds SemCKD to KD", (CE, KD_TERM, SEMCKD_TERM))
EQUAL = Method("equal", "equal weights", "is semckd with equal weights", (CE, KD_TERM, EQUAL_TERM))
ONE_PAIR = Method("pair", "one pair", "is semckd with one pair of layers", (CE, KD_TERM, PAIR_TERM))

for record in (ALONE, KD, SEMCKD, EQUAL, ONE_PAIR):
    register(record)
