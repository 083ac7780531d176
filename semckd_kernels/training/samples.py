"""The demo's digits: samples held in memory, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .data import Share
from .data.digits import load


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
    """All of scikit-learn's handwritten digits, normalised."""
    samples = load(Share(batch_size=1), torch.device(device))
    train = samples.normaliser(
        samples.train_pixels.cut(samples.train_pixels.starts(torch.arange(samples.train_count, device=device)))
    )
    test = samples.test_images(range(samples.test_count))
    return DataSet(samples.name, samples.classes, Split(train, samples.train_labels), Split(*test))


def batches(split: Split, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, shuffled where a generator is given.

    Every sample comes once: the last batch holds what is left over and may be smaller.
    """
    count = len(split.labels)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for index in order.to(split.labels.device).split(batch_size):
        yield split.images[index], split.labels[index]
