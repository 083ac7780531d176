"""The emulation's three builds from Python: building them, device buffers, launch options, traffic.

``plain``      as fast as it gets
``sanitized``  under the address and undefined-behaviour sanitizers; needs a process that they were loaded into first
``observed``   every memory access of a kernel is seen: races, reads of what nobody wrote, counted traffic
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "cuda_emulation"
# the builds that tests run on
CHOSEN = os.environ.get("SEMCKD_EMULATION", "plain,observed").split(",")

# numpy has no bfloat16: its bits are kept
STORAGE = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class MissingTool(Exception):
    """The emulation cannot be built here; says what is missing."""


@functools.cache
def build(name: str) -> Path:
    """Builds one of the three, or what changed since the last time; returns the library."""
    for tool in ("g++", "cmake", "ninja"):
        if not shutil.which(tool):
            raise MissingTool(f"{tool} is not installed")
    BUILD.mkdir(parents=True, exist_ok=True)
    # tests run in several processes
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(name)
    return BUILD / f"lib{name}.so"


def _build(name: str) -> None:
    configure = ["cmake", "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_CXX_COMPILER=g++"]
    configured = subprocess.run(configure, capture_output=True, text=True)
    if configured.returncode:
        # the message of CMakeLists.txt, without cmake's frame around it
        raise MissingTool(" ".join(configured.stderr.split()))
    built = subprocess.run(["cmake", "--build", str(BUILD), "--target", name, "-j2"], capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(f"the CUDA emulation does not build:\n{built.stdout}{built.stderr}")


def sanitizer_environment() -> dict[str, str]:
    """The environment of a process that may load the ``sanitized`` build."""
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {**os.environ, "LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}


class Options(ctypes.Structure):
    """``cuda_emulation::Options``."""

    _fields_ = (
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("resident", ctypes.c_uint),
        ("poison", ctypes.c_bool),
        ("check_races", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
    )


@dataclass(frozen=True)
class Schedule:
    """In which order threads and blocks run, and how many blocks run interleaved."""

    order: int
    seed: int = 0
    resident: int = 1


ASCENDING, DESCENDING = Schedule(0), Schedule(1, resident=2)
RANDOM = tuple(Schedule(2, seed, resident=3) for seed in (1, 2))
SCHEDULES = (ASCENDING, DESCENDING, *RANDOM)


class Traffic(ctypes.Structure):
    """``cuda_emulation::Traffic``: bytes, and how often the least and most accessed bytes of a buffer were accessed."""

    _fields_ = (
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
        ("min_loads", ctypes.c_uint32),
        ("max_loads", ctypes.c_uint32),
        ("min_stores", ctypes.c_uint32),
        ("max_stores", ctypes.c_uint32),
    )


class LaunchRecord(ctypes.Structure):
    """``cuda_emulation::LaunchRecord``."""

    _fields_ = (("blocks", ctypes.c_uint64), ("threads", ctypes.c_uint), ("parameter_bytes", ctypes.c_size_t))


class Buffer:
    """Device memory, seen by the host as a flat array.

    Starts as 0xff bytes, NaN in every floating-point type, that kernels may not read. Ends exactly where it should.
    """

    def __init__(self, emulation: Emulation, dtype: str, count: int, misaligned_by: int = 0) -> None:
        storage: np.dtype[np.generic] = np.dtype(STORAGE.get(dtype, dtype))
        self._emulation = emulation
        self.dtype = dtype
        self.pointer: int = emulation.library.emulation_allocate(
            count * storage.itemsize, misaligned_by * storage.itemsize
        )
        memory = (ctypes.c_uint8 * (count * storage.itemsize)).from_address(self.pointer)
        self.array: NDArray[np.generic] = np.ctypeslib.as_array(memory).view(storage)

    def fill(self, values: NDArray[np.generic]) -> Buffer:
        """Copies values of the buffer's storage type into it; kernels may read it from then on."""
        self.array[:] = values
        self._emulation.library.emulation_mark_written(self.pointer)
        return self

    def traffic(self) -> Traffic:
        traffic = Traffic()
        self._emulation.library.emulation_traffic(self.pointer, ctypes.byref(traffic))
        return traffic


class Emulation:
    """One build, loaded. As a context manager it frees the buffers that were made inside."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = ctypes.CDLL(str(build(name)))
        library = self.library
        library.emulation_error.restype = ctypes.c_char_p
        library.emulation_allocate.restype = ctypes.c_void_p
        library.emulation_allocate.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        library.emulation_release.argtypes = (ctypes.c_void_p,)
        library.emulation_mark_written.argtypes = (ctypes.c_void_p,)
        library.emulation_traffic.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        library.emulation_launch.argtypes = (ctypes.c_size_t, ctypes.c_void_p)
        library.emulation_launch_count.restype = ctypes.c_size_t
        library.emulation_options_bytes.restype = ctypes.c_size_t
        assert library.emulation_options_bytes() == ctypes.sizeof(Options)
        self._buffers: list[Buffer] = []
        self.schedule()

    @property
    def observes(self) -> bool:
        return bool(self.library.emulation_observes_accesses())

    def schedule(
        self, schedule: Schedule = ASCENDING, poison: bool = True, check_races: bool = True, dry_run: bool = False
    ) -> None:
        """Sets the options of the launches that follow."""
        options = Options(schedule.order, schedule.seed, schedule.resident, poison, check_races, dry_run)
        self.library.emulation_configure(ctypes.byref(options))

    def buffer(self, dtype: str, count: int, misaligned_by: int = 0) -> Buffer:
        """A buffer of ``count`` elements that begins that many elements behind a multiple of 256 bytes."""
        self._buffers.append(Buffer(self, dtype, count, misaligned_by))
        return self._buffers[-1]

    def upload(self, values: NDArray[np.generic]) -> Buffer:
        return self.buffer(str(values.dtype), values.size).fill(values.ravel())

    def check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"cudaError {error}: {self.library.emulation_error().decode()}")

    def launches(self, run: Callable[[], object]) -> list[LaunchRecord]:
        """What ``run`` launches."""
        self.library.emulation_forget_launches()
        run()
        records = [LaunchRecord() for _ in range(self.library.emulation_launch_count())]
        for i, record in enumerate(records):
            self.library.emulation_launch(i, ctypes.byref(record))
        return records

    def __enter__(self) -> Emulation:
        self.schedule()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for buffer in self._buffers:
            self.library.emulation_release(buffer.pointer)
        self._buffers.clear()


@functools.cache
def load(name: str) -> Emulation:
    return Emulation(name)
