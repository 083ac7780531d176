"""Scratch memory for the maps of one pair, used again by the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# a cache line and a vector; and no two maps a multiple of 4 KiB apart, which would share the sets of a cache
_ALIGNMENT = 64
_GAP = 320


class Workspace:
    """Hands out uninitialised tensors that are valid until :meth:`reset`.

    On the CPU they are cut from one buffer, since fresh memory costs a page fault every 4 KiB: about as much as a pass
    over it. On other devices torch's allocator caches, knows about streams and about captured graphs, and serves.

    Args:
        device: where the tensors lie.
        capacity: bytes to begin with, on the CPU; more is added when it is needed.
    """

    def __init__(self, device: torch.device, capacity: int = 0) -> None:
        self._device = device
        self._capacity = capacity
        self._buffer: Tensor | None = None
        self._offset = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        begin = self._offset
        self._offset = -(-(begin + nbytes) // _ALIGNMENT) * _ALIGNMENT + _GAP
        if self._buffer is None or begin + nbytes > self._buffer.numel():
            # earlier tensors keep the buffer that they were cut from
            self._capacity = max(self._capacity, 2 * self._offset)
            self._buffer, begin, self._offset = _huge_pages(self._capacity), 0, -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return self._buffer[begin : begin + nbytes].view(dtype).view(tuple(shape))

    def reset(self) -> None:
        """Takes back all tensors handed out."""
        self._offset = 0


def _huge_pages(nbytes: int) -> Tensor:
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    if hasattr(torch.ops.semckd, "advise_huge_pages"):
        torch.ops.semckd.advise_huge_pages(buffer)
    return buffer
