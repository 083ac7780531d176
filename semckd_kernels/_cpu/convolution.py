"""Which 3x3 convolution serves a pair: the vendor's or ours."""

from __future__ import annotations

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


def choose(dtype: torch.dtype, channels: int, pixels: int) -> str:
    """The convolution for maps of a type, with ``channels`` in and out and ``pixels`` a sample."""
    return forced() or "winograd"
