"""The kernels in Triton: portable, compiled at first use.

Importing this package is free and safe where Triton is missing. Only the backend loader imports the kernel files,
after :func:`why_not` has found nothing in the way.
"""

from __future__ import annotations

import os
import re
import shutil

import torch

from ...install import triton_requirement

OLDEST_TRITON = (3, 6)


def why_not(device_type: str) -> str | None:
    """Why Triton cannot serve tensors on a kind of device, in one sentence; None where it can.

    Triton decides when it is imported whether its functions are interpreted, so the answer describes the Triton of
    this process, whatever ``TRITON_INTERPRET`` says by now.

    Args:
        device_type: ``torch.device.type``; ROCm devices are ``"cuda"`` to torch.
    """
    if device_type not in ("cuda", "cpu"):
        return f"its kernels run on CUDA and ROCm GPUs, not on {device_type} devices"
    try:
        import numpy as np
        import triton
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction
    except ModuleNotFoundError as error:
        return f'a package is missing ({error}): install it with `pip install "{triton_requirement()}" numpy`'
    except Exception as error:
        return f"the triton package does not import ({type(error).__name__}: {error}): reinstall it"
    version = _numbers(triton.__version__)
    if version < OLDEST_TRITON:
        return f"triton {'.'.join(map(str, OLDEST_TRITON))} or newer is needed, this one is {triton.__version__}"

    # triton's own library holds functions of the kind that was chosen when it was imported; ours must be of that kind
    interpreted = isinstance(tl.sum, InterpretedFunction)
    if interpreted != bool(triton.knobs.runtime.interpret):
        return "TRITON_INTERPRET was changed after triton had been imported: set it before the program starts"
    if device_type == "cpu":
        if not interpreted:
            return "Triton serves CPU tensors only when interpreted: set TRITON_INTERPRET=1"
        if version < (3, 7) and _numbers(np.__version__) >= (2, 4):
            return f"the interpreter of triton {triton.__version__} needs numpy < 2.4, this one is {np.__version__}"
        return None
    if interpreted:
        return "TRITON_INTERPRET is set, and interpreted kernels serve CPU tensors only: unset it"
    if not torch.cuda.is_available():
        return "no GPU is visible to torch"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles its launchers at first use and finds no C compiler: install gcc, or name one in CC"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
