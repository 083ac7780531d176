"""Scratch memory for the maps of one pair, used again by the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# memory that is worth two huge pages or more is asked for in them: a fault then costs 2 MiB instead of 4 KiB
_HUGE = 4 << 20


class Workspace:
    """Hands out uninitialised tensors that are valid until :meth:`reset`.

    Every pair asks for the same tensors in the same order, so the n-th request after a reset is served by the memory of
    the n-th request before it. On the CPU fresh memory would cost a page fault every 4 KiB, about as much as a pass
    over it. On other devices torch's allocator caches, knows about streams and about captured graphs, and serves.

    Args:
        device: where the tensors lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor."""
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        nbytes = math.prod(shape) * dtype.itemsize
        if self._used == len(self._blocks):
            self._blocks.append(_block(nbytes))
        elif self._blocks[self._used].numel() < nbytes:
            self._blocks[self._used] = _block(nbytes)
        block = self._blocks[self._used]
        self._used += 1
        return block[:nbytes].view(dtype).view(tuple(shape))

    def reset(self) -> None:
        """Takes back all tensors handed out."""
        self._used = 0


def in_huge_pages(x: Tensor) -> Tensor:
    """An uninitialised CPU tensor, which from a few megabytes on the system is asked to keep in huge pages."""
    if x.nbytes >= _HUGE:
        torch.ops.semckd.advise_huge_pages(x)
    return x


def _block(nbytes: int) -> Tensor:
    return in_huge_pages(torch.empty(nbytes, dtype=torch.uint8))
