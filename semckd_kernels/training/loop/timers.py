"""Where the time of a step goes, without waiting for the device in between."""

from __future__ import annotations

import time

import torch

PARTS = ("data", "teacher", "student", "criterion", "optimizer")


class Timers:
    """Adds up milliseconds by part of a step: each ``mark`` gives the time since the last one to a part.

    This one marks nothing: for evaluation, and inside a CUDA graph. ``student`` and ``criterion`` are forward and
    backward of each.
    """

    def start(self) -> None:
        """Begins a step: the time since the last mark is no part's."""

    def mark(self, part: str) -> None:
        """The time since the last mark is this part's."""

    def collect(self) -> dict[str, float]:
        """Milliseconds by part since the last call; the device must have finished what was marked."""
        return {}


class HostTimers(Timers):
    """Of work that is done when the call returns: the CPU."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(PARTS, 0.0)
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        now = time.perf_counter()
        self._sums[part] += now - self._last
        self._last = now

    def collect(self) -> dict[str, float]:
        collected = {part: 1e3 * seconds for part, seconds in self._sums.items()}
        self._sums = dict.fromkeys(PARTS, 0.0)
        return collected


class EventTimers(Timers):
    """Of work that is queued on the current CUDA stream: events, which are read only when they are collected.

    Time in which the GPU waits for a batch is the data's.
    """

    def __init__(self) -> None:
        # the part is None where a step starts
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []
        self._free: list[torch.cuda.Event] = []

    def _record(self, part: str | None) -> None:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))

    def start(self) -> None:
        self._record(None)

    def mark(self, part: str) -> None:
        self._record(part)

    def collect(self) -> dict[str, float]:
        collected = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, event) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                collected[part] += before.elapsed_time(event)
        self._free += [event for _, event in self._marks]
        self._marks = []
        return collected


def make(device: torch.device) -> Timers:
    """The timers for a device."""
    return EventTimers() if device.type == "cuda" else HostTimers()
