"""What launches over tables would make Triton compile, without a GPU; and all of it that whole layers need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..criterion.backend import MapPart
from .launch import Launches, Work
from .layers import Layers
from .offline import Variant


class RecordedLaunches(Launches):
    """Launches nothing, and remembers what each launch would have compiled."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.variants: dict[str, Variant] = {}

    def add(self, kernel: Any, work: Sequence[Work], constants: dict[str, Any], options: dict[str, Any]) -> None:
        if not any(row.programs for row in work):
            return
        constexprs = {"ROW": len(work[0].words) + 1, **constants}
        signature = {"table_ptr": "*i64", "rows": "i32", **dict.fromkeys(constexprs, "constexpr")}
        name = kernel.__name__.removesuffix("_kernel")
        options = {**options, "enable_fp_fusion": True}
        self.variants[name] = Variant(name, kernel, signature, constexprs, ("table_ptr",), options)

    def run(self) -> None:
        pass


def layer_variants(dtype: torch.dtype, arch: str, channels: int, batch: int = 64, layers: int = 3) -> list[Variant]:
    """All variants of the kernels of whole layers, for students and teachers alike.

    Args:
        dtype: type of the maps.
        arch: ``"sm_90"``, ``"gfx942"``.
        channels: c and C.
        batch: B and Bq.
        layers: S and T.
    """
    device = torch.device("meta")
    wide = torch.promote_types(dtype, torch.float32)
    recorded = RecordedLaunches(device)
    subject = Layers(device, arch, lambda _: recorded, wide)

    def new(*shape: int, dtype: torch.dtype = wide) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    maps = [new(batch, channels, 32, 32, dtype=dtype) for _ in range(2 * layers)]
    by_size = subject.resolutions(maps, [[(16, 16)]] * len(maps), dtype)
    rows = [x[32, 32].flatten(1) for x in by_size]
    d = max(1, batch // 4)
    embedding = [new(*shape) for _ in rows for shape in ((2 * d, batch), (2 * d,), (d, 2 * d), (d,))]
    saved = subject.allocate(rows, embedding, layers, 1.0)
    mse = new(*saved.weight.shape)
    subject.loss(saved.weight, mse)
    d_similarity, _ = subject.allocate_backward(mse, saved, embedding, 1.0)
    parts = [[MapPart(new(batch, n, n, channels), (n, n), 1.0) for n in (32, 16)]] * layers
    subject.finish_maps(maps[:layers], rows[:layers], parts, d_similarity)
    return list(recorded.variants.values())
