"""What a process on the stand-in does first."""

from __future__ import annotations

import functools

import torch

from semckd_kernels.backends import libraries

from . import programs, vendor
from .build import BUILD


@functools.cache
def _load_cuda() -> str | None:
    """In place of ``libraries.load_cuda``: the installed library has a CUDA runtime inside."""
    if reason := libraries.load_compiled():
        return reason
    library = BUILD / "libsemckd_cuda.so"
    if not library.exists():
        return "nvcc is not installed"
    torch.ops.load_library(library)
    return None


@functools.cache
def prepare() -> None:
    """Replaces what would reach past the runtime: vendor libraries, compiled programs, our own CUDA library."""
    vendor.install()
    programs.install()
    libraries.load_cuda = _load_cuda
