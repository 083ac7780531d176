"""What a run sets for its whole process: threads, number formats, algorithms. Behind :func:`kept` all is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from .config import HardwareConfig

ALGORITHMS = ("deterministic", "benchmark")


def set_precision(hardware: HardwareConfig) -> None:
    """Sets threads and the process-wide switches of torch's number formats and algorithms."""
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    fast = hardware.precision == "tf32"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.deterministic = hardware.deterministic
    torch.backends.cudnn.benchmark = not hardware.deterministic


@contextmanager
def kept() -> Iterator[None]:
    """Within it a run may set what is its process's, from torch's own defaults; behind it, all of that is as it was.

    That is threads, number formats, algorithms of cuDNN, default type and device, the GPU at hand, and the random
    generators. Signal handlers and process groups are the loop's and ``distributed``'s.
    """
    # their parts have no types
    backends: Any = torch.backends
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    algorithms = {name: getattr(backends.cudnn, name) for name in ALGORITHMS}
    operations = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    formats = [(operation, operation.fp32_precision) for operation in operations]
    older: dict[str, Any] = {}
    # torch has an older and a newer name for the same switch, and refuses to read the older one of who uses both
    with suppress(RuntimeError):
        older["matmul"] = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        older["cudnn"] = backends.cudnn.allow_tf32
    generators = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else None
    gpu = torch.cuda.current_device() if on_gpu else None
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        for name, value in algorithms.items():
            setattr(backends.cudnn, name, value)
        if "matmul" in older:
            torch.set_float32_matmul_precision(older["matmul"])
        if "cudnn" in older:
            backends.cudnn.allow_tf32 = older["cudnn"]
        for operation, value in formats:
            operation.fp32_precision = value
        if gpu is not None:
            torch.cuda.set_device(gpu)
        torch.set_rng_state(generators[0])
        if generators[1] is not None:
            torch.cuda.set_rng_state_all(generators[1])
