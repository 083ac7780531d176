"""What a run was made on: versions, processor, GPU and backends."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

import semckd_kernels

PACKAGES = ("torch", "torchvision", "triton", "timm", "scikit-learn")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(device: torch.device) -> dict[str, Any]:
    """Facts in the types of JSON."""
    return {
        "semckd_kernels": semckd_kernels.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "backends": {name: found.detail for name, found in semckd_kernels.available_backends().items()},
    }
