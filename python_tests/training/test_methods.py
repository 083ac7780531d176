"""Loss terms against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from semckd_kernels import SemCKD
from semckd_kernels.backends import reference
from semckd_kernels.training import methods
from semckd_kernels.training.methods import Criterion, MethodConfig, kd_loss
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
    criterion = Criterion(MethodConfig("semckd", 0.5, 2.0, 3.0, 7.0), {"semckd": term})
    total, terms, weight = criterion(student, teacher, labels)
    assert terms.keys() == {"ce", "kd", "semckd"}
    torch.testing.assert_close(terms["ce"], F.cross_entropy(student.logits, labels))
    torch.testing.assert_close(terms["kd"], kd_loss(student.logits, teacher.logits, 3.0))
    expected = term(student.maps, teacher.maps)
    torch.testing.assert_close(terms["semckd"], expected.loss)
    torch.testing.assert_close(weight, expected.weight)
    torch.testing.assert_close(total, 0.5 * terms["ce"] + 2.0 * terms["kd"] + 7.0 * terms["semckd"])


def test_terms_of_weight_zero_are_not_computed() -> None:
    student, teacher, labels = outputs(8)
    alone = Criterion(MethodConfig())
    assert not alone.needs_teacher
    assert alone(student, None, labels).terms.keys() == {"ce"}
    assert Criterion(MethodConfig("kd"))(student, teacher, labels).terms.keys() == {"ce", "kd"}


def test_what_a_method_needs_must_be_given() -> None:
    student, _, labels = outputs(8)
    with pytest.raises(ValueError, match="the module of the term 'semckd' must be a SemCKD, got NoneType"):
        Criterion(MethodConfig("semckd"))
    with pytest.raises(ValueError, match="teacher must be given"):
        Criterion(MethodConfig("kd"))(student, None, labels)


SHAPES = (
    [torch.Size((2, 4, 4)), torch.Size((3, 2, 2))],
    [torch.Size((4, 4, 4)), torch.Size((5, 2, 2)), torch.Size((6, 2, 2))],
)


def built(name: str, **options: object) -> Criterion:
    torch.manual_seed(0)
    return methods.build(MethodConfig(name, **options), 8, *SHAPES)  # type: ignore[arg-type]


def by_reference(criterion: Criterion, pairs: list[list[tuple[int, int]]], weight: torch.Tensor) -> torch.Tensor:
    """The pair loss of explicit weights, over maps that are projected one by one."""
    student, teacher, _ = outputs(8)
    assert criterion.attention is not None
    s_value, f_target = [], []
    for i, row in enumerate(pairs):
        for j, (s, t) in enumerate(row):
            x, y = student.maps[s], teacher.maps[t]
            size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
            s_value.append(criterion.attention.projection(i, j)(F.adaptive_avg_pool2d(x, size)))
            f_target.append(F.adaptive_avg_pool2d(y, size))
    return reference.pair_loss(s_value, f_target, weight, False)[0]


def test_equal_is_semckd_of_uniform_weights() -> None:
    criterion = built("equal")
    student, teacher, labels = outputs(8)
    uniform = torch.full((8, 2, 3), 1 / 3)
    expected = by_reference(criterion, [[(i, j) for j in range(3)] for i in range(2)], uniform)
    loss = criterion(student, teacher, labels)
    torch.testing.assert_close(loss.terms["semckd"], expected)
    assert torch.equal(loss.weight, uniform)
    # what is switched off still gets a gradient, so that DistributedDataParallel finds every parameter used
    loss.total.backward()
    assert all(p.grad is not None for p in criterion.parameters())
    assert all(not p.grad.any() for name, p in criterion.named_parameters() if "query" in name or "key" in name)


@pytest.mark.parametrize("pair", [(0, 0), (1, 2), (0, 2)])
def test_pair_is_semckd_of_one_hot_weights_times_the_number_of_student_layers(pair: tuple[int, int]) -> None:
    criterion = built("pair", pair=pair)
    student, teacher, labels = outputs(8)
    loss = criterion(student, teacher, labels)
    assert loss.weight.tolist() == [[[1.0]]] * 8
    # the criterion of all pairs, with the one projection in its place
    whole = built("semckd")
    i, j = pair
    whole.semckd.projection(i, j).load_state_dict(criterion.semckd.projection(0, 0).state_dict())
    one_hot = torch.zeros(8, 2, 3)
    one_hot[:, i, j] = 1.0
    expected = by_reference(whole, [[(i, j) for j in range(3)] for i in range(2)], one_hot)
    torch.testing.assert_close(loss.terms["semckd"], 2 * expected)
    # one projection is trained, and no attention that could matter
    assert sum("regressor" in name and name.endswith("0.weight") for name, _ in criterion.named_parameters()) == 1


def test_methods_are_built_with_their_terms() -> None:
    terms = {name: built(name).terms for name in ("ce", "kd", "semckd", "equal")}
    all_terms = ["ce", "kd", "semckd"]
    assert terms == {"ce": ["ce"], "kd": ["ce", "kd"], "semckd": all_terms, "equal": all_terms}
    assert built("semckd", kd_weight=0.0).terms == ["ce", "semckd"]
    criterion = built("semckd", beta=7.0, ce_weight=0.5, temperature=2.0, soft=3.0, factor=2)
    assert criterion.weights == {"ce": 0.5, "kd": 1.0, "semckd": 7.0}
    assert criterion.attention is not None
    assert criterion.attention.soft == 3.0
    assert criterion.attention.embeddings()[0].linear2.out_features == 4
    student, teacher, labels = outputs(8)
    expected = kd_loss(student.logits, teacher.logits, 2.0)
    torch.testing.assert_close(criterion(student, teacher, labels).terms["kd"], expected)


def test_a_pair_that_does_not_exist() -> None:
    for pair in ((2, 0), (0, 3)):
        with pytest.raises(ValueError, match="one of 2 student layers and one of 3 teacher layers"):
            built("pair", pair=pair)


def test_layer_names_are_row_by_row() -> None:
    student, teacher = ["a", "b"], ["x", "y", "z"]
    rows = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("b", "y"), ("b", "z")]
    assert methods.layer_names(built("semckd"), student, teacher) == rows
    assert methods.layer_names(built("pair", pair=(1, 2)), student, teacher) == [("b", "z")]
    assert methods.layer_names(built("kd"), student, teacher) == []


def test_channels_of_maps_and_tokens() -> None:
    assert methods.channels([torch.Size((8, 4, 4)), torch.Size((16, 12))]) == [8, 12]
