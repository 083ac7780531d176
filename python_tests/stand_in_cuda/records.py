"""What the library recorded, in a process that preloads it."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

import semckd_kernels

# kinds that are work of a device; recorder.h has the same words
LAUNCHES = ("kernel", "triton", "vendor", "copy", "fill", "graph")
PACKAGE = str(Path(semckd_kernels.__file__).parent)
# the stage of work that no function of ours launched: backward passes of torch's own operators
OUTSIDE = "outside"


@dataclass(frozen=True)
class Record:
    """One call that the runtime was asked for; ``recorder.h`` describes the kinds.

    Attributes:
        stream: -1 where it is no work on a stream.
        stage: the function of the package that launched it, ``"criterion.engine.like_parameter"``.
    """

    kind: str
    bytes: int
    device: int
    stream: int
    captured: bool
    stage: str
    name: str

    @property
    def is_launch(self) -> bool:
        return self.kind in LAUNCHES


def library() -> ctypes.CDLL:
    """The preloaded library.

    Raises:
        RuntimeError: this process runs without it.
    """
    loaded = ctypes.CDLL(None)
    if not hasattr(loaded, "stand_in_start"):
        raise RuntimeError("this process does not run on the stand-in CUDA runtime; start it with child.py")
    loaded.stand_in_count.restype = ctypes.c_size_t
    loaded.stand_in_record.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    loaded.stand_in_stop.argtypes = (ctypes.c_char_p,)
    return loaded


_Stage = ctypes.CFUNCTYPE(ctypes.c_int)


def stage_of(frame: FrameType | None) -> str:
    """The innermost function of the package on the stack, helpers that begin with ``_`` left out."""
    innermost = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            module = code.co_filename[len(PACKAGE) + 1 : -len(".py")].replace("/", ".")
            name = getattr(code, "co_qualname", code.co_name)
            innermost = innermost or f"{module}.{name}"
            if not code.co_name.startswith("_") and not name.endswith(">"):
                return f"{module}.{name}"
        frame = frame.f_back
    return innermost or OUTSIDE


@dataclass
class Log:
    """Records of a ``with`` block.

    Example:
        with Log() as log:
            loss.backward()
        assert not log.of("sync")
    """

    records: list[Record] = field(default_factory=list)

    def __enter__(self) -> Log:
        torch.cuda.synchronize()
        self._stages: dict[str, int] = {OUTSIDE: 0}
        self._ask = _Stage(self._stage)
        library().stand_in_start(self._ask)
        return self

    def _stage(self) -> int:
        return self._stages.setdefault(stage_of(sys._getframe().f_back), len(self._stages))

    def __exit__(self, *_: object) -> None:
        names = {n: name for name, n in self._stages.items()}
        with tempfile.NamedTemporaryFile() as file:
            if library().stand_in_stop(file.name.encode()):
                raise RuntimeError(f"the records could not be written to {file.name}")
            lines = Path(file.name).read_text().splitlines()
        for line in lines:
            kind, size, device, stream, captured, stage, name = line.split("\t", 6)
            self.records.append(
                Record(kind, int(size), int(device), int(stream), captured == "1", names[int(stage)], name)
            )

    @property
    def launches(self) -> list[Record]:
        return [record for record in self.records if record.is_launch]

    def of(self, *kinds: str) -> list[Record]:
        return [record for record in self.records if record.kind in kinds]

    def copies(self, word: str) -> list[Record]:
        """Copies whose direction has a word in it: ``pageable``, ``H2D``, ``D2H pinned``."""
        return [record for record in self.of("copy") if word in record.name]


def count(records: Iterable[Record]) -> dict[str, int]:
    """How many records there are of each kind."""
    return dict(Counter(record.kind for record in records))
