"""Adaptive average pooling of rows ``[B, H, W, C]``: every resolution of a map made once, and the way back.

Where the sizes divide, a window is a plain block. Where they do not, pooling is a product with a small matrix along
each axis. Both have deterministic backwards on every device, which ``adaptive_avg_pool2d`` has not on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dtypes

Size = tuple[int, int]


class Resolutions:
    """One layer's map at the resolutions its pairs need it at.

    A coarser map is made from the coarsest one that it divides, so that the full map is read once.

    Args:
        x: rows ``[B, H, W, C]``.
    """

    def __init__(self, x: Tensor) -> None:
        self.full_size: Size = (x.shape[1], x.shape[2])
        self._maps = {self.full_size: x}
        self._of_other_types: dict[tuple[Size, torch.dtype], Tensor] = {}

    def at(self, size: Size, dtype: torch.dtype | None = None) -> Tensor:
        """Rows ``[B, h, w, C]``; the map itself at its own size. Of another type, pooled in that type."""
        full = self._maps[self.full_size]
        if dtype is not None and dtype != full.dtype:
            if (size, dtype) not in self._of_other_types:
                self._of_other_types[size, dtype] = pool(full.to(dtype), size)
            return self._of_other_types[size, dtype]
        if size not in self._maps:
            # windows of windows are windows only where sizes divide all the way from the full map
            finer = [s for s in self._maps if _divides(s, size) and _divides(self.full_size, s)]
            source = min(finer, key=lambda s: s[0] * s[1], default=self.full_size)
            self._maps[size] = pool(self._maps[source], size)
        return self._maps[size]


def pool(x: Tensor, size: Size) -> Tensor:
    """``adaptive_avg_pool2d`` of rows ``[B, H, W, C]`` to ``[B, h, w, C]``."""
    full = (x.shape[1], x.shape[2])
    if _divides(full, size):
        window = (full[0] // size[0], full[1] // size[1])
        return F.avg_pool2d(x.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1).contiguous()
    down, across = (_windows(n, m, x) for n, m in zip(full, size, strict=True))
    return _separable(x.to(down.dtype), down, across).to(x.dtype)


def unpool_add_(target: Tensor, d: Tensor) -> None:
    """Adds the gradient of :func:`pool`'s input, ``[B, H, W, C]``, from that of its output, ``[B, h, w, C]``."""
    full, size = target.shape[1:3], d.shape[1:3]
    if _divides(full, size):
        window = (full[0] // size[0], full[1] // size[1])
        blocks = target.view(len(d), size[0], window[0], size[1], window[1], d.shape[3])
        blocks.add_(d[:, :, None, :, None], alpha=1 / (window[0] * window[1]))
    else:
        down, across = (_windows(n, m, d) for n, m in zip(full, size, strict=True))
        target.add_(_separable(d, down.t(), across.t()))


def _divides(full: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return full[0] % size[0] == 0 and full[1] % size[1] == 0


def _windows(n: int, m: int, like: Tensor) -> Tensor:
    """``[m, n]``: row i averages over the window of output i, ``floor(i*n/m)`` to ``ceil((i+1)*n/m)``."""
    i = torch.arange(m, device=like.device).unsqueeze(1)
    at = torch.arange(n, device=like.device)
    begin, end = i * n // m, ((i + 1) * n + m - 1) // m
    inside = (at >= begin) & (at < end)
    return inside.to(dtypes.acc_dtype(like.dtype)) / (end - begin)


def _separable(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """A matrix along each axis of rows ``[B, H, W, C]``."""
    batch, _, width, channels = x.shape
    x = (down @ x.flatten(2)).view(batch * len(down), width, channels)
    return (across @ x).view(batch, len(down), len(across), channels)
