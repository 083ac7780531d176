"""What every launch needs: types as Triton names them, and the device to launch on."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton.language as tl

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
