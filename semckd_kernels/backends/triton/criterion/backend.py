"""The criterion in Triton: all layers at once, and chunks of pairs with one launch a stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....stages.backend import Group, Pair, PairResult
from .chunk import run_chunk
from .layers import Layers
from .settings import Settings

# bytes of maps that a chunk may have: all pairs of CIFAR's networks at a batch of 256, and of ImageNet's at 64 in fp32.
# Where there are more, launches are long enough to hide what starting them costs
CHUNK_BYTES = 1536 << 20


def chunk_bytes() -> int:
    """The budget: ``SEMCKD_CHUNK_MIB``, or the default. 0 has one pair a chunk."""
    value = os.environ.get("SEMCKD_CHUNK_MIB")
    if value is None:
        return CHUNK_BYTES
    if not value.isdecimal():
        raise ValueError(f"SEMCKD_CHUNK_MIB must be a whole number of MiB, got {value!r}")
    return int(value) << 20


class TritonBackend(Layers):
    """Implements :class:`~semckd_kernels.stages.backend.Backend`.

    Args:
        device: where the maps lie; the current one.
        map_dtype: type that maps are computed in.
        need_grad: whether gradients are wanted.
    """

    def __init__(self, device: torch.device, map_dtype: torch.dtype, need_grad: bool) -> None:
        # groups of few pixels have settings of their own
        self._settings = {map_dtype: Settings(device, map_dtype, need_grad)}
        settings = self._settings[map_dtype]
        super().__init__(device, settings.arch, acc_dtype=settings.acc_dtype)

    def chunks(self, groups: Sequence[Group]) -> Iterable[list[Group]]:
        by_type: dict[torch.dtype, list[Group]] = {}
        for group in groups:
            by_type.setdefault(group.x.dtype, []).append(group)
        budget = chunk_bytes()
        return [chunk for own in by_type.values() for chunk in divide(own, budget)]

    def run_chunk(self, chunk: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]:
        dtype, acc_dtype = chunk[0].x.dtype, chunk[0].acc_dtype
        if dtype not in self._settings:
            (any_other, *_) = self._settings.values()
            self._settings[dtype] = Settings(self.device, dtype, any_other.need_grad)
        if acc_dtype == mse.dtype:
            return run_chunk(self._settings[dtype], chunk, alpha, mse)
        own = torch.empty_like(mse, dtype=acc_dtype)
        results = run_chunk(self._settings[dtype], chunk, alpha.to(acc_dtype), own)
        for pair in (pair for group in chunk for pair in group.pairs):
            mse.flatten(1)[:, pair.q] = own.flatten(1)[:, pair.q]
        return results


def divide(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """The groups, in order, in as few chunks as a budget of bytes allows; a group may be divided."""
    chunks: list[list[Group]] = [[]]
    room = budget
    for group in groups:
        pairs: list[Pair] = []
        for pair in group.pairs:
            needed = _bytes_of(pair)
            if needed > room and (pairs or chunks[-1]):
                if pairs:
                    chunks[-1].append(replace(group, pairs=pairs))
                    pairs = []
                chunks.append([])
                room = budget
            pairs.append(pair)
            room -= needed
        chunks[-1].append(replace(group, pairs=pairs))
    return chunks


def _bytes_of(pair: Pair) -> int:
    """Of a pair's maps where most are alive: three of 2C channels and the residual."""
    return 7 * pair.target.numel() * pair.target.element_size()
