"""What is installed, how it was built, and which backends serve here."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from ._version import VERSION
from .backends import available_backends
from .backends.cpu import convolution


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _build() -> str:
    try:
        from . import _build_info as info
    except ImportError:
        return "not built: pip install ."
    cuda = f"CUDA {info.CUDA_COMPILER} for {info.CUDA_ARCHITECTURES.replace(';', ' ')}"
    return f"{info.COMPILER}, torch {info.TORCH_HEADERS} headers, {info.CUDA_MISSING or cuda}"


def report() -> str:
    """The environment report as text, one fact a line."""
    facts = {
        "semckd_kernels": VERSION,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, HIP {torch.version.hip or 'none'}",
        "triton": _version("triton"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible",
        "built with": _build(),
    }
    lines = [f"{name:<16}{value}" for name, value in facts.items()]
    lines.append("backends")
    for name, (available, detail) in available_backends().items():
        lines.append(f"  {name:<14}{'yes' if available else 'no ':<5}{detail}")
    lines.append(f"{'3x3 on the CPU':<16}{convolution.describe()}")
    return "\n".join(lines)
