"""Memory of large gradients that nobody holds any more, used again; and the kernels' own, to be given back."""

from __future__ import annotations

import sys
import threading

import torch
from torch import Tensor

# memory that is worth two huge pages or more is asked for in them: a fault then costs 2 MiB instead of 4 KiB
_HUGE = 4 << 20
# what the C library always asks the system for, and gives back as soon as it is freed (glibc's largest threshold)
_RETURNED = 32 << 20


def release() -> None:
    """Gives the memory that calls have left back to the system: gradients', maps' and partial sums'."""
    with _lock:
        _gradients.clear()
    # without the compiled library there is none
    if hasattr(torch.ops.semckd_cpu, "release_scratch"):
        torch.ops.semckd_cpu.release_scratch()


class _GradientMemory:
    """Memory of a size, and whether anybody else holds it: a tensor, a view, an array or the storage itself."""

    def __init__(self, nbytes: int) -> None:
        self.storage = _block(nbytes).untyped_storage()
        self._own = self._holders()

    def _holders(self) -> tuple[int, int]:
        """In C++ and in Python."""
        return torch._C._storage_Use_Count(self.storage._cdata), sys.getrefcount(self.storage)

    def is_free(self) -> bool:
        return self._holders() == self._own


_gradients: list[_GradientMemory] = []
_lock = threading.Lock()


def gradient_of(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor of a parameter's shape and strides.

    A large one lies in the memory of an earlier one that nobody holds any more: the system would clear fresh memory,
    which is 5% of VGG-13 -> VGG-8.
    """
    if parameter.numel() * dtype.itemsize <= _RETURNED:
        return in_huge_pages(torch.empty_like(parameter, dtype=dtype))
    given = torch.empty_like(parameter, dtype=dtype, device="meta")
    with _lock:
        # of memory that was moved to be shared, other processes may be readers
        _gradients[:] = [memory for memory in _gradients if not memory.storage.is_shared()]
        free = [memory for memory in _gradients if memory.is_free()]
        memory = next((memory for memory in free if memory.storage.nbytes() == given.nbytes), None)
        if memory is None:
            # sizes that nobody asks for any more would stay for ever
            memory = _GradientMemory(given.nbytes)
            _gradients[:] = [*(held for held in _gradients if held not in free), memory]
        # not a view: versions are counted by tensor
        return torch.empty(0, dtype=dtype).set_(memory.storage, 0, given.shape, given.stride())


def in_huge_pages(x: Tensor) -> Tensor:
    """An uninitialised CPU tensor, which from a few megabytes on the system is asked to keep in huge pages."""
    if x.nbytes >= _HUGE:
        torch.ops.semckd_cpu.advise_huge_pages(x)
    return x


def _block(nbytes: int) -> Tensor:
    return in_huge_pages(torch.empty(nbytes, dtype=torch.uint8))
