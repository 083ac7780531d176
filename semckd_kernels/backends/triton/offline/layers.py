"""What whole layers would make Triton compile, without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .... import dtypes
from ....stages.attention import Embedding
from ....stages.backend import MapPart
from ..criterion.layers import Layers
from .pairs import Recorded, Variant


def layer_variants(dtype: torch.dtype, arch: str, channels: int, batch: int = 64, layers: int = 3) -> list[Variant]:
    """All variants of the kernels of whole layers, for students and teachers alike.

    Args:
        dtype: type of the maps.
        arch: ``"sm_90"``, ``"gfx942"``.
        channels: c and C.
        batch: B and Bq.
        layers: S and T.
    """
    acc_dtype = dtypes.acc_dtype(dtype)

    def empty(*shape: int, dtype: torch.dtype = acc_dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    maps = [empty(batch, channels, 32, 32, dtype=dtype) for _ in range(2 * layers)]
    subject = Layers(maps[0].device, arch, Recorded, acc_dtype)
    Recorded.variants = {}
    by_size = subject.resolutions(maps, [[(16, 16)]] * len(maps), dtype)
    rows = [x[32, 32].flatten(1) for x in by_size]
    d = max(1, batch // 4)
    embedding = [Embedding(empty(2 * d, batch), empty(2 * d), empty(d, 2 * d), empty(d)) for _ in rows]
    saved = subject.allocate(rows, embedding, layers, 1.0)
    mse = empty(*saved.weight.shape)
    subject.loss(saved.weight, mse)
    d_similarity, _ = subject.allocate_backward(mse, saved, embedding, 1.0)
    parts = [[MapPart(empty(batch, n, n, channels), (n, n), 1.0) for n in (32, 16)]] * layers
    subject.finish_maps(maps[:layers], rows[:layers], parts, d_similarity)
    return list(Recorded.variants.values())
