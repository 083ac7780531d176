"""Fewer training samples and wrong labels: what a run draws once, from its seed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .sampling import generator


@dataclass(frozen=True)
class Draw:
    """Which training samples a run sees, and with which labels: the same on every process and after every resume.

    Args:
        fraction: share of the training samples, above 0 and at most 1. Every class keeps its own share, and at least
            one sample.
        noise: share of the labels of these samples that are drawn anew, from 0 to 1: evenly from all classes, so that
            of C classes one in C such labels stays what it was.
        seed: of both draws, which do not depend on each other's share.
    """

    fraction: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"train_fraction must be a share above 0 and at most 1, got {self.fraction:g}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"label_noise must be a share from 0 to 1, got {self.noise:g}")

    @property
    def is_everything(self) -> bool:
        """Whether all samples stay, with their own labels."""
        return self.fraction == 1 and not self.noise

    def samples(self, labels: Tensor) -> Tensor:
        """Indices of the samples that stay, ascending, of ``labels`` ``[N]``.

        There are ``fraction * N``, rounded down, but for classes that would have none.
        """
        if self.fraction == 1:
            return torch.arange(len(labels))
        order = torch.randperm(len(labels), generator=generator(self.seed, "train_fraction"))
        counts = _shares(torch.bincount(labels).tolist(), self.fraction)
        # of each class those that come first in one random order
        drawn = labels[order]
        kept = [order[drawn == label][:count] for label, count in enumerate(counts)]
        return torch.cat(kept).sort().values

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """``labels`` ``[n]`` of the samples that stay, ``noise * n`` of them drawn anew; the argument is left alone."""
        count = round(self.noise * len(labels))
        if not count:
            return labels
        random = generator(self.seed, "label_noise")
        chosen = torch.randperm(len(labels), generator=random)[:count]
        drawn = labels.clone()
        drawn[chosen] = torch.randint(classes, (count,), generator=random)
        return drawn


# all samples, with their own labels
EVERYTHING = Draw()


def _shares(counts: list[int], fraction: float) -> list[int]:
    """How many of each class stay: largest remainders first, so that they add up to the whole's share."""
    # a tenth of 30 is 3, whatever the last bit of 0.1 * 30 is
    exact = [round(fraction * count, 9) for count in counts]
    shares = [math.floor(share) for share in exact]
    missing = math.floor(round(fraction * sum(counts), 9)) - sum(shares)
    nearest = sorted(range(len(counts)), key=lambda label: shares[label] - exact[label])
    for label in nearest[:missing]:
        shares[label] += 1
    return [max(share, min(count, 1)) for share, count in zip(shares, counts, strict=True)]
