"""What every launch needs: types as Triton names them, the device to launch on, and launches over tables of work.

A *grouped* kernel has two arguments: a table of int64 words on the device, and the number of its rows. A row holds the
first program that works on it and whatever the kernel wants to know of its piece of work: addresses, sizes, factors. So
one launch serves any number of pieces of any sizes, and one compiled kernel serves all of them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .upload import upload

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


# what a word is made of: a tensor stands for its address, a float for the bits of a double
Word = Tensor | int | float


@dataclass(frozen=True)
class Extra:
    """Further words of a row, of any number; the row says how many words behind the table's beginning they are."""

    words: tuple[Word, ...]


def tickets(count: int) -> Extra:
    """Counters, all zero before the launch."""
    return Extra((0,) * count)


@dataclass(frozen=True)
class Work:
    """A row of a table: how many programs it takes, and its words."""

    programs: int
    words: tuple[Word | Extra, ...]


@dataclass(frozen=True)
class _Launch:
    kernel: Any
    work: Sequence[Work]
    constants: dict[str, Any]  # in the order of the kernel's arguments
    options: dict[str, Any]


# what has been compiled, by kernel, constants, options and device. The two arguments never change what is compiled: the
# table's address is a multiple of 16, and the number of rows is not specialized
COMPILED: dict[tuple[Any, ...], Any] = {}


class Launches:
    """Launches that share one upload: their tables go to the device together, then they start one after the other.

    Args:
        device: where they run; the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._launches: list[_Launch] = []

    def add(self, kernel: Any, work: Sequence[Work], constants: dict[str, Any], options: dict[str, Any]) -> None:
        """One launch over rows of work; nothing where there is none.

        Args:
            kernel: takes ``(table_ptr, rows, ROW)`` and ``constants``, in their order.
            work: rows of equal length; addresses must be multiples of 16.
            constants: compile-time arguments.
            options: ``num_warps`` and ``num_stages``.
        """
        work = [row for row in work if row.programs]
        if work:
            self._launches.append(_Launch(kernel, work, {"ROW": len(work[0].words) + 1, **constants}, options))

    def run(self) -> None:
        """Uploads and launches what has been added."""
        if not self._launches:
            return
        words: list[int] = []
        tables = []
        for one in self._launches:
            # a table's address is a multiple of 16, too
            words += [0] * (len(words) % 2)
            tables.append((len(words), _write(one.work, words)))
        uploaded = upload(words, self.device)
        for one, (begin, programs) in zip(self._launches, tables, strict=True):
            self.launch(one.kernel, programs, uploaded[begin:], len(one.work), one.constants, one.options)
        self._launches = []

    def launch(
        self, kernel: Any, programs: int, table: Tensor, rows: int, constants: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """One launch, by the shortest way that Triton has: 3 us of host time instead of 13 once it is compiled."""
        # fusion is named since triton is going to change its default
        options = {**options, "enable_fp_fusion": True}
        values = tuple(constants.values())
        key = (kernel, values, *options.values(), self.device)
        compiled = COMPILED.get(key)
        if compiled is None or triton.knobs.runtime.debug:
            compiled = kernel[(programs,)](table, rows, **constants, **options)
            # the interpreter returns nothing
            if compiled is not None:
                COMPILED[key] = compiled
            return
        compiled[(programs, 1, 1)](table, rows, *values)


def _write(work: Sequence[Work], words: list[int]) -> int:
    """Appends a table and what its rows have besides, and returns the number of its programs."""
    begin, first = len(words), 0
    extras: list[tuple[int, Extra]] = []
    for row in work:
        words.append(first)
        first += row.programs
        for x in row.words:
            if isinstance(x, Extra):
                extras.append((len(words), x))
                words.append(0)
            else:
                words.append(_bits(x))
    for at, extra in extras:
        words[at] = len(words) - begin
        words.extend(map(_bits, extra.words))
    return first


def _bits(x: Word) -> int:
    if isinstance(x, Tensor):
        return x.data_ptr()
    if isinstance(x, float):
        return int(struct.unpack("<q", struct.pack("<d", x))[0])
    return x
