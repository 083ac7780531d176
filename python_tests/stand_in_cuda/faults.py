"""Programs with one fault each, for the self-test: what the runtime says to them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from .records import Log, count, library

STREAM_CAPTURE_UNSUPPORTED = 900


@triton.jit
def _fill(x_ptr, N: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, N), 1.0)


def _error(call: Callable[[], object]) -> str:
    """The first line of what a call raises; empty where it raises nothing."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _capture(body: Callable[[], object], mode: str = "global") -> str:
    """Captures a graph of ``body``; the error, or nothing."""
    graph = torch.cuda.CUDAGraph()

    def run() -> None:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            body()

    return _error(run)


def none() -> dict[str, Any]:
    """A program without a fault: an operator, a Triton kernel, a pinned copy, a graph."""
    x = torch.zeros(8, device="cuda")
    pinned = torch.ones(8).pin_memory()
    _fill[(1,)](x, 8)
    with Log() as log:
        x.copy_(pinned, non_blocking=True)
        x * 2
        _fill[(1,)](x, 8)
        error = _capture(lambda: x * 2)
    return {"counts": count(log.records), "copies": [r.name for r in log.of("copy")], "error": error}


def synchronisation() -> list[str]:
    x = torch.zeros(8, device="cuda")
    with Log() as log:
        x.sum().item()
        torch.cuda.current_stream().synchronize()
        torch.cuda.synchronize()
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
    return [record.name for record in log.of("sync")]


def pageable_copy() -> list[str]:
    with Log() as log:
        torch.ones(8).to("cuda", non_blocking=True)
        torch.ones(8).pin_memory().to("cuda", non_blocking=True)
    return [record.name for record in log.of("copy")]


def cpu_tensor() -> list[str]:
    x = torch.zeros(8, device="cuda")
    return [
        _error(lambda: _fill[(1,)](torch.zeros(8), 8)),
        _error(lambda: x + torch.zeros(8)),
        _error(lambda: x.view(2, 4) @ torch.zeros(4, 2)),
    ]


def illegal_in_capture() -> dict[str, list[str]]:
    x = torch.zeros(8, device="cuda")

    def synchronise() -> None:
        torch.cuda.current_stream().synchronize()

    def pageable() -> None:
        # torch refuses this by itself, so it is asked for as C++ would
        host, stream = torch.ones(8), torch.cuda.current_stream().cuda_stream
        copy = library().cudaMemcpyAsync
        copy.argtypes = (*(ctypes.c_void_p,) * 2, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
        assert copy(x.data_ptr(), host.data_ptr(), host.nbytes, 1, stream) == STREAM_CAPTURE_UNSUPPORTED

    def outside_event() -> None:
        event = torch.cuda.Event()
        event.record(torch.cuda.default_stream())
        torch.cuda.current_stream().wait_event(event)

    (x * 2).sum()
    found = {}
    for body in (synchronise, pageable, outside_event):
        with Log() as log:
            error = _capture(body)
        found[body.__name__] = [error, *(record.name for record in log.of("illegal"))]
    return found


def stream_not_joined() -> list[str]:
    x = torch.zeros(8, device="cuda")
    side = torch.cuda.Stream()

    def body(joins: bool) -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x * 2
        if joins:
            torch.cuda.current_stream().wait_stream(side)

    with Log() as log:
        errors = [_capture(lambda: body(True)), _capture(lambda: body(False))]
    return [*errors, *(record.name for record in log.of("capture"))]


def other_device() -> list[str]:
    """A launch on the stream of a device that is not the current one, which Triton's own launcher would not do."""
    x = torch.zeros(8, device="cuda:1")
    stream = torch.cuda.Stream(x.device).cuda_stream
    with torch.cuda.device(x.device):
        program = _fill[(1,)](x, 8)
    options = (program.function, program.packed_metadata, None, None, None)
    with Log() as log:
        error = _error(lambda: program.run(1, 1, 1, stream, *options, x, 8))
    return [error, *(record.name for record in log.of("illegal"))]


def allocation_in_another_thread(mode: str) -> list[Any]:
    """A thread asks for device memory while this one captures."""
    x = torch.zeros(8, device="cuda")
    errors: list[str] = []

    def allocate() -> None:
        # more than the allocator has at hand
        errors.append(_error(lambda: torch.empty(1 << 28, device="cuda")))

    def body() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        x * 2

    return [_capture(body, mode), *errors]


def unsupported() -> list[Any]:
    """A function that the library does not have, called as C++ would."""
    with Log() as log:
        error = library().cudaChooseDevice(None, None)
    return [error, *(record.name for record in log.of("unsupported"))]


def all_faults() -> dict[str, Any]:
    """Every program of this file; the keys are their names."""
    programs: tuple[Callable[[], Any], ...] = (
        none,
        synchronisation,
        pageable_copy,
        cpu_tensor,
        illegal_in_capture,
        stream_not_joined,
        other_device,
        unsupported,
    )
    found = {program.__name__: program() for program in programs}
    found["threads"] = {mode: allocation_in_another_thread(mode) for mode in ("global", "thread_local")}
    return found
