"""Tables from the host to a device: one copy, in order, also while a graph is being captured."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


def upload(words: list[int], device: torch.device) -> Tensor:
    """Copies int64 words to a device behind the work of the current stream, without waiting for it.

    Each call uploads afresh. A copy kept on the device and found again by its contents would save a microsecond of the
    stream's time, but it would have to be kept apart by stream, to live as long as any graph that read it, and not to
    lie in the private memory pool that ``torch.cuda.graph``, ``torch.compile`` or ``torch.cuda.use_mem_pool`` may have
    in force when it is made, which there is no way to know.

    In a captured graph the copy becomes a node that reads the pinned memory again at each replay. Asking for pinned
    memory during a capture may end it, so that calls outside of captures set some aside.
    """
    if device.type == "cpu":
        return torch.tensor(words, dtype=torch.int64, device=device)
    # by name: the caller may have set another default device, as torch.compile does around CUDA graphs
    host = torch.device("cpu")
    if torch.cuda.is_current_stream_capturing():
        pinned = _spare.take(len(words)).copy_(torch.tensor(words, dtype=torch.int64, device=host))
    else:
        _spare.refill()
        pinned = torch.tensor(words, dtype=torch.int64, device=host, pin_memory=True)
    return pinned.to(device, non_blocking=True)


class _Spare:
    """Pinned memory for the tables of captured graphs, which are never freed: a graph does not say when it ends."""

    # half a MiB; a table has about 1 KiB
    WORDS = 1 << 16

    def __init__(self) -> None:
        self._left: Tensor | None = None
        self._taken: list[Tensor] = []
        self._lock = threading.Lock()

    def refill(self) -> None:
        """Sees to it that half of the memory is left."""
        if self._left is None or self._left.numel() < self.WORDS // 2:
            self._left = self._new(self.WORDS)

    def take(self, words: int) -> Tensor:
        """Memory that nobody else gets; asked for now where a capture is the first call, or needs more than is left."""
        with self._lock:
            if self._left is None or self._left.numel() < words:
                taken = self._new(words)
            else:
                # tables begin at multiples of 16 bytes, as those of the allocator do
                taken, self._left = self._left[:words], self._left[words + words % 2 :]
            self._taken.append(taken)
        return taken

    @staticmethod
    def _new(words: int) -> Tensor:
        return torch.empty(words, dtype=torch.int64, device="cpu", pin_memory=True)


_spare = _Spare()
