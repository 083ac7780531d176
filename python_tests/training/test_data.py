"""The digits, their split and their batches."""

from __future__ import annotations

import pytest
import torch

from semckd_kernels.training import data


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.digits()


def test_digits_are_all_there_and_normalised(digits: data.DataSet) -> None:
    assert digits.classes == 10
    assert digits.train.images.shape == (1437, 1, 16, 16)
    assert digits.test.images.shape == (360, 1, 16, 16)
    # by the training set's mean and deviation: exactly there, nearly so in the test set
    assert abs(digits.train.images.mean().item()) < 1e-4
    assert abs(digits.train.images.std().item() - 1) < 1e-4
    assert 0 < abs(digits.test.images.mean().item()) < 0.1


def test_images_belong_to_their_labels(digits: data.DataSet) -> None:
    # the nearest class mean is right for about nine of ten digits, and for one of ten if labels were shuffled
    train, test = digits.train, digits.test
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(test.images.flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.85


def test_split_is_fixed_disjoint_and_stratified() -> None:
    labels = torch.arange(1000) % 7
    train, test = data.split_indices(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1000))
    for label in range(7):
        share = (labels[test] == label).sum() / (labels == label).sum()
        assert abs(share - data.TEST_SHARE) < 0.01
    again = data.split_indices(labels)
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])


def test_batches_hold_every_sample_once(digits: data.DataSet) -> None:
    numbered = data.Split(torch.arange(1437), digits.train.labels)
    seen = list(data.batches(numbered, 64, torch.Generator().manual_seed(3)))
    assert [len(labels) for _, labels in seen] == [64] * 22 + [29]
    order = torch.cat([images for images, _ in seen])
    assert not torch.equal(order, numbered.images)
    assert torch.equal(order.sort().values, numbered.images)
    assert torch.equal(torch.cat([labels for _, labels in seen]), digits.train.labels[order])


def test_order_follows_the_seed() -> None:
    split = data.Split(torch.arange(100), torch.zeros(100))

    def order(seed: int | None) -> list[int]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.cat([images for images, _ in data.batches(split, 32, generator)]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(None) == list(range(100))
