"""What kernels are launched on: architecture and warps."""

from __future__ import annotations

import functools
import re

import torch


def warp_size(arch: str) -> int:
    """Threads of a warp: 64 on AMD's gfx9 (CDNA), 32 everywhere else."""
    return 64 if re.match("gfx9", arch) else 32


@functools.cache
def device_arch(device: torch.device) -> str:
    """The architecture of a device; interpreted kernels are launched as an H100 would launch them."""
    if device.type == "cpu":
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
