"""Independent work on side streams of a GPU, while a CUDA graph is being captured.

The vendor's convolutions of a chunk's pairs are independent. Launched one by one they gain nothing from a second
stream, since the host is what they wait for; in a graph they become branches, and small kernels share the GPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

# branches of a captured graph. Not measured on a GPU yet: enough for CIFAR's small pairs to fill what one leaves idle
SIDE_STREAMS = 3


class SideStreams:
    """Forks a device's current stream on entry, joins on exit; with no GPU, or outside a capture, does nothing.

    Memory that work on a side stream allocates must stay alive until the exit: after it, and before the next fork,
    every stream has waited for every other.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams: list[Any] = []
        if device.type != "cuda":
            return
        # the maps' device need not be the current one
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                self._origin = torch.cuda.current_stream()
                self._streams = [torch.cuda.Stream() for _ in range(SIDE_STREAMS)]

    def __enter__(self) -> SideStreams:
        for stream in self._streams:
            stream.wait_stream(self._origin)
        return self

    def take(self, n: int) -> contextlib.AbstractContextManager[Any]:
        """The context of the n-th piece of work."""
        if not self._streams:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._streams[n % len(self._streams)])

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            self._origin.wait_stream(stream)
