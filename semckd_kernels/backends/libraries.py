"""The compiled libraries beside this package: loaded once a process, or a sentence on why there are none."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

LIBRARY_FOLDER = Path(__file__).parent.parent / "lib"


@functools.cache
def load_compiled() -> str | None:
    """Loads the compiled operators, once a process.

    Returns:
        None, or one sentence on why there are none.
    """
    library = LIBRARY_FOLDER / "libsemckd.so"
    # a second copy, from another path, would register every operator twice and end the process
    if not hasattr(torch.ops.semckd, "pair_loss"):
        if not library.exists():
            return f"the compiled library is missing ({library.name}): install the package with `pip install .`"
        try:
            torch.ops.load_library(library)
        except OSError as error:
            return f"the compiled library does not load beside torch {torch.__version__}: {error}; reinstall it"
    return None


@functools.cache
def load_cuda() -> str | None:
    """Loads the CUDA implementations of the compiled operators, once a process; returns as :func:`load_compiled`."""
    if reason := load_compiled():
        return reason
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    library = LIBRARY_FOLDER / "libsemckd_cuda.so"
    if not library.exists():
        return f"{cuda_missing()}: install CUDA's nvcc and run `pip install .` again"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("semckd::pair_loss", "CUDA"):
        try:
            torch.ops.load_library(library)
        except OSError as error:
            return f"the CUDA library does not load beside torch {torch.__version__}: {error}; reinstall it"
    return None


def cuda_missing() -> str:
    """Why the build made no CUDA library."""
    try:
        from .. import _build_info
    except ImportError:
        return "the package was not built"
    return _build_info.CUDA_MISSING or "the CUDA library is missing (libsemckd_cuda.so)"
