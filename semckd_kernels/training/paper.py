"""The accuracy to expect: figures of the paper, and of an independent rerun, for pairs of teacher and student."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .methods import ALONE, KD, SEMCKD
from .models import canonical_name

SOURCE = "Chen et al., AAAI 2021; in brackets a rerun by others (github.com/Yahya-Abbas/ModReduce)"
BELOW_KD = (
    "SemCKD is not above plain KD everywhere: in an independent rerun it was below on 6 of 15 pairs, five of them "
    "CIFAR ResNets or WRNs taught by a network of their own family."
)


@dataclass(frozen=True)
class Published:
    """Top-1 accuracies of one pair in percent; None where a source has none, two values where sources differ."""

    data: str
    teacher: str
    student: str
    alone: tuple[float, ...]
    kd: tuple[float, ...]
    semckd: tuple[float, ...]
    semckd_rerun: float | None = None

    def of(self, method: str) -> tuple[float, ...] | None:
        """The published values of a method of this package, or None: ``ce``, ``kd`` and ``semckd`` have one."""
        return {ALONE.name: self.alone, KD.name: self.kd, SEMCKD.name: self.semckd}.get(method)

    def rerun_of(self, method: str) -> float | None:
        """The value of the independent rerun, of ``semckd`` alone."""
        return self.semckd_rerun if method == SEMCKD.name else None


PUBLISHED = (
    Published("cifar100", "ResNet-32x4", "VGG-8", (70.46,), (72.73,), (75.27,), 75.02),
    Published("cifar100", "ResNet-32x4", "VGG-13", (74.82,), (77.17,), (79.43,), 79.14),
    Published("cifar100", "VGG-13", "ShuffleNetV2", (72.60,), (75.60,), (76.39,), 76.24),
    Published("cifar100", "ResNet-32x4", "ShuffleNetV2", (72.60,), (75.49,), (77.62,), 78.07),
    Published("cifar100", "WRN-40-2", "MobileNetV2", (65.43,), (68.70,), (69.61,), 69.77),
    Published("cifar100", "VGG-13", "VGG-8", (70.46,), (73.38,), (74.43,), 74.08),
    Published("cifar100", "ResNet-32x4", "ResNet-8x4", (73.09,), (74.42,), (76.23,), 75.55),
    Published("imagenet", "ResNet-34", "ResNet-18", (69.67, 70.13), (70.62, 70.68), (70.87,)),
)


def find(data: str, teacher: str | None, student: str) -> Published | None:
    """The published figures for a pair of networks, whatever the spelling of their names.

    Args:
        data: name of the data set.
        teacher, student: names of the networks, ``"resnet32x4"`` or ``"torchvision/resnet34"``; without a teacher any
            pair with this student serves for the student alone.
    """
    for row in PUBLISHED:
        if row.data == data and same(row.student, student) and (teacher is None or same(row.teacher, teacher)):
            return row
    return None


def same(a: str, b: str) -> bool:
    """Whether two names mean one network."""
    return _plain(a) == _plain(b)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", canonical_name(name.rsplit("/", 1)[-1]).lower())
