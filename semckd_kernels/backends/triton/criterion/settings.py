"""What the criterion's launches ask for on every call, looked up once: types, precision, alignment, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .... import dtypes
from ..device import device_arch
from ..launch import TYPES, Launches
from .config import ProductTile


def precision_of(arch: str) -> str:
    """Of products of fp32 that take the place of convolutions; other types ignore it."""
    # this flag, since the older allow_tf32 raises where both kinds were set
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    # who turns TF32 off has the 3x3 without tensor cores as well, next to which three TF32 products would save little
    return "tf32" if tf32 and arch.startswith("sm_") else "ieee"


def blocks(tile: ProductTile) -> dict[str, int]:
    """A tile as constants of a kernel."""
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}


def options(tile: ProductTile) -> dict[str, int]:
    """A tile as options of the compiler."""
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


class Settings:
    """Of one call.

    Args:
        device: the current one.
        map_dtype: type that maps are computed in.
        need_grad: whether gradients are wanted.
        arch: ``"sm_90"``; the device's without one.
        launches: what launches.
    """

    def __init__(
        self,
        device: torch.device,
        map_dtype: torch.dtype,
        need_grad: bool,
        arch: str | None = None,
        launches: type[Launches] = Launches,
    ) -> None:
        self.device, self.map_dtype, self.need_grad = device, map_dtype, need_grad
        self.acc_dtype = dtypes.acc_dtype(map_dtype)
        self.arch = arch or device_arch(device)
        self.launches = launches
        self.precision = precision_of(self.arch)
        # 16-bit maps are exact in TF32
        exact_in_tf32 = map_dtype in (torch.float16, torch.bfloat16) and self.arch.startswith("sm_")
        self.matrix_precision = "tf32" if exact_in_tf32 else self.precision

    def vector(self, channels: Sequence[int]) -> int:
        """Elements of a map that accesses may take at a time: 128 bits where all numbers of channels allow it."""
        elements = 16 // self.map_dtype.itemsize
        return 1 if any(n % elements for n in channels) else elements

    def types(self, vector: int) -> dict[str, Any]:
        """The first constants of a kernel that reads maps."""
        return {"MAP": TYPES[self.map_dtype], "ACC": TYPES[self.acc_dtype], "VECTOR": vector}
