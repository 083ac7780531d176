"""Samples by number, of whatever kind, as worker processes read them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .draw import Draw


class Source(Protocol):
    """Samples 0, 1, ..., each an image and its label."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor | None:
        """Of all samples ``[N]``, int64; None where only reading them tells."""

    def read(self, index: int) -> tuple[Any, Any]:
        """A sample: a PIL image, or a tensor ``[C, H, W]`` of uint8 or of floats, and a whole number."""

    def where(self, index: int) -> str:
        """What a sample is called: the path of its file, where it has one."""


class Drawn:
    """The samples of a source that a draw leaves, with the labels that it gives them.

    Raises:
        ValueError: the source does not know its labels.
    """

    def __init__(self, source: Source, draw: Draw, classes: int) -> None:
        own = source.labels
        if own is None:
            raise ValueError(
                "train_fraction and label_noise need the labels of all training samples: give the training set an "
                "attribute 'targets' that holds them"
            )
        self.source = source
        self.kept = draw.samples(own)
        self.labels = draw.labels(own[self.kept], classes)

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, index: int) -> tuple[Any, Any]:
        return self.source.read(int(self.kept[index]))[0], int(self.labels[index])

    def where(self, index: int) -> str:
        return self.source.where(int(self.kept[index]))


def check_labels(labels: Tensor | None, classes: int, what: str) -> None:
    """Raises ValueError where a label, as far as they are known, is of no class."""
    if labels is None or not len(labels):
        return
    low, high = torch.aminmax(labels)
    if low < 0 or high >= classes:
        wrong = int(low if low < 0 else high)
        raise ValueError(f"labels of {what} must be from 0 to {classes - 1}, got {wrong}")
