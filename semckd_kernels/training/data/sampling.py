"""Which samples a rank sees in which order, and every random choice: functions of (seed, epoch, sample), no state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits out of numbers and names; other parts give an unrelated one."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator for :func:`derived_seed`, on the CPU whatever the device, so that choices are the same on all."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class Share:
    """A rank's share of the samples.

    Args:
        batch_size: samples a step of this rank.
        seed: of order and augmentation.
        rank, world_size: this process among all of them.
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}")

    def check_fits(self, train_count: int) -> None:
        """Raises ValueError where a step of all ranks would be more than the training set."""
        if self.batch_size * self.world_size > train_count:
            ranks = f" x world_size = {self.batch_size} x {self.world_size}" if self.world_size > 1 else ""
            got = "" if ranks else f", got {self.batch_size}"
            raise ValueError(f"batch_size{ranks} must be at most {train_count}, the number of training samples{got}")

    def train_samples(self, count: int) -> int:
        """Training samples of each rank in an epoch: ``count / world_size``, rounded up."""
        return -(-count // self.world_size)

    def train_steps(self, count: int) -> int:
        """Steps of an epoch, equal on all ranks; the last one may be smaller."""
        return -(-self.train_samples(count) // self.batch_size)

    def train_order(self, count: int, epoch: int) -> Tensor:
        """This rank's samples of an epoch, ``[train_samples]``, shuffled by seed and epoch.

        All ranks deal out one permutation in turns; its first few samples come once more at its end where the ranks'
        shares would be unequal.
        """
        order = torch.randperm(count, generator=generator(self.seed, "order", epoch))
        missing = self.train_samples(count) * self.world_size - count
        return torch.cat([order, order[:missing]])[self.rank :: self.world_size]

    def batches(self, order: Tensor) -> Iterator[Tensor]:
        """An order in pieces of the batch size: the last one may be smaller, and none is empty."""
        return iter(order.split(self.batch_size) if len(order) else ())

    def test_order(self, count: int) -> Tensor:
        """This rank's test samples, in order: each sample belongs to exactly one rank, and shares may differ by one."""
        return torch.arange(count)[self.rank :: self.world_size]
