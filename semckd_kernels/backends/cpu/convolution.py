"""Which 3x3 convolution serves a pair's maps: the vendor's (oneDNN through torch) or ours (Winograd).

Measured on a Zen 4 with AVX-512 and bf16 products, batch 64, one thread, forward + backward against the better of
oneDNN's layouts: fp32 2.9 to 4 times as fast at 128 to 1024 channels and 4x4 to 32x32 pixels, 6 times on 2x2; bf16 1.8
to 2.7 and 3.4 times (by shape: ``csrc/cpu/winograd/winograd.cpp``). No measured shape prefers the vendor's. It is
kept for processors whose vendor library has units that ours does not use.
"""

from __future__ import annotations

import functools
import os

import torch

CHOICES = ("vendor", "winograd")


def forced() -> str | None:
    """What ``SEMCKD_CONV`` says; None where the choice is free.

    Raises:
        ValueError: it says neither.
    """
    value = os.environ.get("SEMCKD_CONV") or None
    if value is not None and value not in CHOICES:
        raise ValueError(f"SEMCKD_CONV must be one of {', '.join(CHOICES)}, got '{value}'")
    return value


def choose(dtype: torch.dtype) -> str:
    """The convolution for maps of a type."""
    if (choice := forced()) is not None:
        return choice
    # eight times the rate of our bf16 products, where Winograd saves a factor of 2.25: by these figures, not measured
    return "vendor" if dtype == torch.bfloat16 and _has_amx() else "winograd"


@functools.cache
def _has_amx() -> bool:
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found and found())


def describe() -> str:
    """One line for the environment report."""
    try:
        forced()
    except ValueError as error:
        return str(error)
    source = "SEMCKD_CONV" if forced() else "default"
    kinds = {dtype: choose(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return (
        ", ".join(f"{name} for {str(dtype).removeprefix('torch.')}" for dtype, name in kinds.items()) + f" ({source})"
    )
