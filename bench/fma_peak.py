"""The machine's peak of fused multiply-adds, by a probe that is compiled for it on the spot (``fma_peak.cpp``)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

from .harness import Contender

SOURCE = Path(__file__).with_suffix(".cpp")
# long enough that starting threads is nothing, short enough to stand beside every round
SECONDS = 0.02


class FmaPeak:
    """The compiled probe.

    Args:
        library: what :func:`build` made.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.fma_operations.restype = ctypes.c_int64
        self._library.fma_run.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int)
        self._library.fma_run.restype = ctypes.c_float
        self._steps: dict[bool, int] = {}

    def _kind(self, dtype: str) -> bool:
        """Whether products of a type have instructions of their own; without, they are made in fp32."""
        return dtype == "bf16" and self._library.fma_operations(True) > 0

    def _steps_of(self, bf16: bool) -> int:
        if bf16 not in self._steps:
            steps, taken = 1000, 0.0
            while taken < SECONDS / 4:
                steps *= 4
                begin = time.perf_counter()
                self._library.fma_run(bf16, steps, 1)
                taken = time.perf_counter() - begin
            self._steps[bf16] = max(1, int(steps * SECONDS / taken))
        return self._steps[bf16]

    def operations(self, dtype: str, threads: int) -> int:
        """Floating-point operations of one call of :meth:`contender`."""
        bf16 = self._kind(dtype)
        return int(self._library.fma_operations(bf16)) * self._steps_of(bf16) * threads

    def contender(self, dtype: str, threads: int) -> Contender:
        bf16 = self._kind(dtype)
        steps = self._steps_of(bf16)
        return Contender(f"fma peak, {threads} threads", lambda _: self._library.fma_run(bf16, steps, threads))


def build(folder: Path) -> FmaPeak | str:
    """The probe compiled into a folder, or why it is not."""
    wanted = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if compiler is None:
        return "no C++ compiler"
    library = folder / "fma_peak.so"
    options = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC", "-pthread")
    result = subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], capture_output=True, text=True)
    if result.returncode:
        return f"{compiler} failed: {result.stderr.strip().splitlines()[:1]}"
    return FmaPeak(library)
