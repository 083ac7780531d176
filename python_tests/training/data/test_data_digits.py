"""The digits: their images, their split, their batches."""

from __future__ import annotations

import pytest
import torch

from semckd_kernels.training import data
from semckd_kernels.training.data.digits import TEST_SHARE, split_indices


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.build("digits", batch_size=64, seed=3)


def everything(batches: object) -> data.Batch:
    return data.Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))  # type: ignore[call-overload]


def test_digits_are_all_there_and_normalised(digits: data.DataSet) -> None:
    assert (digits.name, digits.classes, digits.in_channels, digits.image_size) == ("digits", 10, 1, (16, 16))
    assert digits.class_names == tuple("0123456789")
    assert (digits.train_count, digits.test_count, digits.steps_per_epoch) == (1437, 360, 23)
    train, test = everything(digits.train_batches(0)), everything(digits.test_batches())
    assert train.images.shape == (1437, 1, 16, 16)
    assert test.images.shape == (360, 1, 16, 16)
    # by the training set's mean and deviation: exactly there, nearly so in the test set
    assert abs(train.images.mean().item()) < 1e-4
    assert abs(train.images.std().item() - 1) < 1e-4
    assert 0 < abs(test.images.mean().item()) < 0.1


def test_images_belong_to_their_labels(digits: data.DataSet) -> None:
    # the nearest class mean is right for about nine of ten digits, and for one of ten if labels were shuffled
    train, test = everything(digits.train_batches(0)), everything(digits.test_batches())
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(test.images.flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.85


def test_digits_are_never_mirrored(digits: data.DataSet) -> None:
    # an epoch holds the same images as any other
    first, second = (everything(digits.train_batches(epoch)).images.flatten(1) for epoch in (0, 1))
    assert not torch.equal(first, second)
    order = [sorted(range(1437), key=images.tolist().__getitem__) for images in (first, second)]
    assert torch.equal(first[order[0]], second[order[1]])


def test_split_is_fixed_disjoint_and_stratified() -> None:
    labels = torch.arange(1000) % 7
    train, test = split_indices(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1000))
    for label in range(7):
        share = (labels[test] == label).sum() / (labels == label).sum()
        assert abs(share - TEST_SHARE) < 0.01
    again = split_indices(labels)
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
