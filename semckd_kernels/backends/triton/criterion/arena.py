"""Scratch memory on a device that only kernels see: addresses instead of tensors, which cost host time to make."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# one allocation serves many vectors; larger requests have one of their own
_BLOCK = 1 << 20


class Arena:
    """Hands out uninitialised memory that lives as long as the arena.

    Args:
        device: where it lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []
        self._begin = self._end = 0

    def take(self, dtype: torch.dtype, *shape: int) -> int:
        """The address of room for a contiguous tensor, a multiple of 16."""
        nbytes = -(-math.prod(shape) * dtype.itemsize // 16) * 16
        if self._begin + nbytes > self._end:
            block = torch.empty(max(nbytes, _BLOCK), dtype=torch.uint8, device=self._device)
            self._blocks.append(block)
            self._begin = block.data_ptr()
            self._end = self._begin + block.numel()
        address = self._begin
        self._begin += nbytes
        return address
