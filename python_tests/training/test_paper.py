"""Published accuracies, found under every spelling of a network's name."""

from __future__ import annotations

import pytest

from semckd_kernels.training import paper


@pytest.mark.parametrize(
    ("data", "teacher", "student", "semckd"),
    [
        ("cifar100", "resnet32x4", "resnet8x4", 76.23),
        ("cifar100", "ResNet-32x4", "vgg13", 79.43),
        ("cifar100", "vgg13", "shufflev2", 76.39),
        ("cifar100", "vgg13", "ShuffleNetV2", 76.39),
        ("cifar100", "wrn_40_2", "mobilenetv2", 69.61),
        ("cifar100", "WRN-40-2", "mobile_half", 69.61),
        ("imagenet", "torchvision/resnet34", "torchvision/resnet18", 70.87),
    ],
)
def test_pairs_by_name(data: str, teacher: str, student: str, semckd: float) -> None:
    found = paper.find(data, teacher, student)
    assert found is not None
    assert found.of("semckd") == (semckd,)
    assert found.of("pair") is None


def test_what_is_not_published() -> None:
    assert paper.find("cifar100", "resnet110", "resnet20") is None
    # the teacher matters, the data set as well
    assert paper.find("cifar100", "vgg13", "resnet8x4") is None
    assert paper.find("imagenet", "resnet32x4", "resnet8x4") is None


def test_the_student_alone_needs_no_teacher() -> None:
    found = paper.find("cifar100", None, "shufflenetv2")
    assert found is not None
    assert found.of("ce") == (72.60,)


def test_rows_make_sense() -> None:
    for row in paper.PUBLISHED:
        assert max(row.alone) < max(row.kd) < min(row.semckd)
    # one student, one accuracy alone, whoever teaches the others
    for student in {row.student for row in paper.PUBLISHED}:
        assert len({row.alone for row in paper.PUBLISHED if row.student == student}) == 1
