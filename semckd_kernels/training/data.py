"""Data sets held in memory, their split into training and test samples, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

# a fifth of the samples is a common share; the split does not follow the training seed, so that accuracies of
# different seeds are measured on the same images
TEST_SHARE = 0.2
SPLIT_SEED = 0
# 8x8 pixels leave the third stage of a CIFAR ResNet 2x2; twice the side leaves it 4x4
DIGITS_SIDE = 16
DIGITS_WHITE = 16.0


class Split(NamedTuple):
    """Images ``[N, C, H, W]`` with zero mean and unit variance over the training set, and labels ``[N]``."""

    images: Tensor
    labels: Tensor


class DataSet(NamedTuple):
    """Training and test samples of one data set."""

    name: str
    classes: int
    train: Split
    test: Split


def digits(device: torch.device | str = "cpu") -> DataSet:
    """scikit-learn's handwritten digits: 1,797 grey images of ten classes, shipped inside that package.

    The 8x8 images are enlarged to 16x16 (bilinear) and normalised by the mean and the standard deviation of the
    training images. The split is fixed and stratified: 1,437 training and 360 test images.
    """
    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / DIGITS_WHITE
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    images = F.interpolate(images, size=(DIGITS_SIDE, DIGITS_SIDE), mode="bilinear", align_corners=False)
    train, test = split_indices(labels)
    std, mean = torch.std_mean(images[train])
    images = ((images - mean) / std).to(device)
    labels = labels.to(device)
    parts = (Split(images[index.to(device)], labels[index.to(device)]) for index in (train, test))
    return DataSet("digits", len(raw.target_names), *parts)


def split_indices(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed stratified split: disjoint indices of the training and of the test samples, each ``[n]``."""
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels.tolist()
    )
    return torch.tensor(train), torch.tensor(test)


def batches(split: Split, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, shuffled where a generator is given.

    Every sample comes once: the last batch holds what is left over and may be smaller.
    """
    count = len(split.labels)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for index in order.to(split.labels.device).split(batch_size):
        yield split.images[index], split.labels[index]
