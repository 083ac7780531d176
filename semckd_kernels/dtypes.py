"""The types of maps, and the type that sums of them are kept in."""

from __future__ import annotations

import torch

FLOAT_TYPES = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
# as messages name them
FLOAT_NAMES = "float32, float16, bfloat16 or float64"


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulation type: fp64 for fp64 maps, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
