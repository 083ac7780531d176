"""Loss terms against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from semckd_kernels import SemCKD
from semckd_kernels.training.methods import Criterion, kd_loss
from semckd_kernels.training.models import Output


def kl_by_hand(student: list[float], teacher: list[float], temperature: float) -> float:
    q, p = ([math.exp(x / temperature) for x in logits] for logits in (student, teacher))
    q, p = ([x / sum(row) for x in row] for row in (q, p))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_loss_is_the_hand_formula(temperature: float) -> None:
    student = [[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]]
    teacher = [[1.0, 0.0, 4.0], [-1.0, 2.5, 0.25]]
    expected = temperature**2 * sum(map(kl_by_hand, student, teacher, [temperature] * 2)) / 2
    value = kd_loss(torch.tensor(student).double(), torch.tensor(teacher).double(), temperature)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_kd_loss_of_equal_logits_is_zero() -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    assert kd_loss(logits, logits + 3.0, 4.0).item() == pytest.approx(0, abs=1e-14)


def test_kd_gradient() -> None:
    # d/dz of T^2 / B * KL is T / B * (q - p)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64).unbind()
    student = student.requires_grad_()
    kd_loss(student, teacher, 4.0).backward()
    expected = 4.0 / 6 * (F.softmax(student / 4, 1) - F.softmax(teacher / 4, 1))
    torch.testing.assert_close(student.grad, expected)


def outputs(batch: int, seed: int = 0) -> tuple[Output, Output, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    student = Output(randn(batch, 3), [randn(batch, 2, 4, 4), randn(batch, 3, 2, 2)])
    teacher = Output(randn(batch, 3), [randn(batch, 4, 4, 4), randn(batch, 5, 2, 2), randn(batch, 6, 2, 2)])
    return student, teacher, torch.arange(batch) % 3


def test_total_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    term = SemCKD(8, [2, 3], [4, 5, 6])
    student, teacher, labels = outputs(8)
    total, terms = Criterion(0.5, 2.0, 3.0, 7.0, term)(student, teacher, labels)
    assert terms.keys() == {"ce", "kd", "semckd"}
    torch.testing.assert_close(terms["ce"], F.cross_entropy(student.logits, labels))
    torch.testing.assert_close(terms["kd"], kd_loss(student.logits, teacher.logits, 3.0))
    torch.testing.assert_close(terms["semckd"], term(student.maps, teacher.maps).loss)
    torch.testing.assert_close(total, 0.5 * terms["ce"] + 2.0 * terms["kd"] + 7.0 * terms["semckd"])


def test_terms_of_weight_zero_are_not_computed() -> None:
    student, teacher, labels = outputs(8)
    alone = Criterion()
    assert not alone.needs_teacher
    assert alone(student, None, labels).terms.keys() == {"ce"}
    assert Criterion(kd_weight=1.0)(student, teacher, labels).terms.keys() == {"ce", "kd"}


def test_what_a_method_needs_must_be_given() -> None:
    student, _, labels = outputs(8)
    with pytest.raises(ValueError, match="semckd must be given"):
        Criterion(beta=1.0)
    with pytest.raises(ValueError, match="teacher must be given"):
        Criterion(kd_weight=1.0)(student, None, labels)
