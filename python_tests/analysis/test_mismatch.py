"""The semantic mismatch against loops over samples, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semckd_kernels.analysis.mismatch import by_position, layer_distance, measure, similarity


def similarity_by_hand(x: Tensor, cosine: bool) -> list[list[float]]:
    rows = [[float(v) for v in sample.flatten()] for sample in x]
    if cosine:
        rows = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]
    gram = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
    return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in gram]


def maps(seed: int = 0, batch: int = 5) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes_s, shapes_t = [(2, 4, 4), (3, 2, 2)], [(4, 4, 4), (5, 2, 2), (9, 6)]
    return tuple([torch.randn(batch, *shape, generator=generator) for shape in side] for side in (shapes_s, shapes_t))


@pytest.mark.parametrize("kind", ["gram", "cosine"])
def test_similarity_is_the_hand_formula(kind: str) -> None:
    x = maps()[0][0]
    expected = torch.tensor(similarity_by_hand(x.double(), kind == "cosine"), dtype=torch.float64)
    torch.testing.assert_close(similarity(x, kind), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["gram", "cosine"])
@pytest.mark.parametrize("distance", ["frobenius", "l1"])
def test_distance_is_the_hand_formula(distance: str, kind: str) -> None:
    feat_s, feat_t = maps()
    found = layer_distance(feat_s, feat_t, distance, kind)
    assert found.shape == (2, 3)
    for i, x in enumerate(feat_s):
        for j, y in enumerate(feat_t):
            a, b = (similarity_by_hand(z.double(), kind == "cosine") for z in (x, y))
            apart = [p - q for row_a, row_b in zip(a, b, strict=True) for p, q in zip(row_a, row_b, strict=True)]
            by_hand = math.sqrt(sum(v * v for v in apart) / 5) if distance == "frobenius" else sum(map(abs, apart)) / 5
            assert found[i, j].item() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("kind", ["gram", "cosine"])
@pytest.mark.parametrize("distance", ["frobenius", "l1"])
def test_equal_layers_and_constant_multiples_are_at_distance_zero(distance: str, kind: str) -> None:
    feat_s, _ = maps()
    same = layer_distance(feat_s, [3.0 * x for x in feat_s], distance, kind)
    torch.testing.assert_close(same.diag(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-7)
    assert same[0, 1] > 0.1


def test_cosine_ignores_the_size_of_each_sample_and_gram_does_not() -> None:
    x = maps()[0][0]
    scaled = x * torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0])[:, None, None, None]
    assert layer_distance([x], [scaled], "frobenius", "cosine").item() == pytest.approx(0, abs=1e-7)
    assert layer_distance([x], [scaled], "frobenius", "gram").item() > 0.1


def test_neither_channels_nor_pixels_have_an_order() -> None:
    feat_s, feat_t = maps()
    shuffled = [x[:, torch.randperm(x.shape[1])].flatten(1)[:, torch.randperm(x[0].numel())] for x in feat_s]
    torch.testing.assert_close(layer_distance(shuffled, feat_t), layer_distance(feat_s, feat_t), rtol=1e-6, atol=1e-9)


def test_bounds() -> None:
    far = torch.eye(4)
    near = torch.ones(4, 3)
    # rows (1, 0, 0, 0) and (1/2, 1/2, 1/2, 1/2): the squared distance is 1
    assert layer_distance([far], [near]).item() == pytest.approx(1.0)
    x = torch.rand(8, 3, 2, 2)
    assert 0 <= layer_distance([x], [torch.rand(8, 5, 4, 4)]).item() <= math.sqrt(2)


def test_samples_of_zeros_give_numbers() -> None:
    x = maps()[0][0]
    x[2] = 0
    found = layer_distance([x], maps(1)[1])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("students", "teachers", "expected"),
    [(3, 3, [0, 1, 2]), (2, 3, [0, 2]), (3, 5, [0, 2, 4]), (4, 3, [0, 1, 1, 2]), (1, 4, [3]), (3, 1, [0, 0, 0])],
)
def test_pairs_by_position(students: int, teachers: int, expected: list[int]) -> None:
    weight = by_position(students, teachers)
    assert weight.shape == (students, teachers)
    assert weight.sum(1).tolist() == [1.0] * students
    assert weight.argmax(1).tolist() == expected


def test_measure_weighs_batches_by_their_samples() -> None:
    batches = []
    for seed, size in ((0, 5), (1, 2)):
        feat_s, feat_t = maps(seed, size)
        weight = torch.rand(size, 2, 3, generator=torch.Generator().manual_seed(seed))
        batches.append((feat_s, feat_t, weight))
    found = measure(batches, "l1", "cosine")
    distances = [layer_distance(s, t, "l1", "cosine") for s, t, _ in batches]
    weights = [w.double().mean(0) for _, _, w in batches]
    scores = [float((w * d).sum() / w.sum()) for w, d in zip(weights, distances, strict=True)]
    assert found.samples == 7
    assert found.score == pytest.approx((5 * scores[0] + 2 * scores[1]) / 7)
    torch.testing.assert_close(found.distance, (5 * distances[0] + 2 * distances[1]) / 7)
    torch.testing.assert_close(found.weight, (5 * weights[0] + 2 * weights[1]) / 7)


def test_a_single_pair_scores_its_own_distance() -> None:
    feat_s, feat_t = maps()
    weight = torch.zeros(2, 3)
    weight[1, 2] = 1.0
    found = measure([(feat_s, feat_t, weight)])
    assert found.score == pytest.approx(layer_distance(feat_s, feat_t)[1, 2].item())


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        measure([])
