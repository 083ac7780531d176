"""Layers' maps, in Triton: their rows, average-pooled rows, and the gradient of the student's maps. The host side of
``map_kernels.py`` and of ``map_gradient_kernel``.

Each method uploads one table and launches each of its kernels once for all layers. Arguments have been checked by the
caller. Nothing here waits for the device or depends on data, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .... import dtypes
from ....stages.backend import MapPart, kept_dtype
from ....stages.pooling import Size
from ..launch import TYPES, Extra, Launches, Word, Work
from .config import RowTile, row_tile
from .layers_config import map_tile, transpose_tile
from .map_kernels import pool_kernel, rows_kernel
from .similarity_kernels import map_gradient_kernel

K = TypeVar("K")
V = TypeVar("V")


def grouped_by(keys: Iterable[K], values: Iterable[V]) -> dict[K, list[V]]:
    """Values with equal keys together."""
    groups: dict[K, list[V]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return groups


def acc_dtype_of(dtype: torch.dtype) -> torch.dtype:
    return dtypes.acc_dtype(dtype)


def aligned(x: Tensor) -> Tensor:
    """A contiguous tensor whose address a table can hold."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def vector_of(itemsize: int, sizes: Iterable[int]) -> int:
    """Elements of a 128-bit access where all sizes are multiples of it, else 1."""
    vector = 16 // itemsize
    return vector if not any(n % vector for n in sizes) else 1


def tiles_of(*sizes: tuple[int, int]) -> int:
    """How many blocks cover a size, along each axis; multiplied."""
    total = 1
    for size, block in sizes:
        total *= -(-size // block)
    return total


def options_of(num_warps: int, num_stages: int = 1) -> dict[str, Any]:
    return {"num_warps": num_warps, "num_stages": num_stages}


class LayerMaps:
    """Maps of layers.

    Args:
        device: where they are; the current one.
        arch: ``"sm_90"``, ``"gfx942"``: the launches are made for it.
        launches: makes the launches of one method.
        acc_dtype: accumulation type of what all layers share.
    """

    def __init__(
        self,
        device: torch.device,
        arch: str,
        launches: Callable[[torch.device], Launches] = Launches,
        acc_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.arch, self.launches, self.acc_dtype = device, arch, launches, acc_dtype

    def resolutions(
        self, maps: Sequence[Tensor], sizes: Sequence[Sequence[Size]], dtype: torch.dtype
    ) -> list[dict[Size, Tensor]]:
        """Rows ``[B, h, w, C]`` of each map at its own size and, average-pooled, at others.

        A channels_last map of that type is not copied at its own size.

        Args:
            maps: ``[B, C, H, W]``, of any strides and types.
            sizes: for each map the sizes it is wanted at, none larger than its own.
            dtype: type of the rows.
        """
        launches = self.launches(self.device)
        result = [{(x.shape[1], x.shape[2]): x} for x in self._rows(launches, maps, [dtype] * len(maps))]
        tile = row_tile(max(x.shape[1] for x in maps), dtype, self.arch)
        work = []
        for by_size, wanted in zip(result, sizes, strict=True):
            ((full, x),) = by_size.items()
            for size in wanted:
                if size in by_size:
                    continue
                out = by_size[size] = self._empty(len(x), *size, x.shape[3], dtype=dtype)
                pixels, channels = len(x) * size[0] * size[1], x.shape[3]
                # a window that begins and ends inside pixels covers one more
                window = [-(-n // m) + (n % m != 0) for n, m in zip(full, size, strict=True)]
                words: tuple[Word, ...] = (x, out, pixels, channels, *full, *size, *window)
                work.append(Work(tiles_of((pixels, tile.block_p), (channels, tile.block_c)), words))
        constants = {
            "TYPE": TYPES[dtype],
            "ACC": TYPES[acc_dtype_of(dtype)],
            "VECTOR": vector_of(dtype.itemsize, [x.shape[1] for x in maps]),
            "BLOCK_P": tile.block_p,
            "BLOCK_C": tile.block_c,
            "STAGES": tile.num_stages,
        }
        launches.add(pool_kernel, work, constants, options_of(tile.num_warps))
        launches.run()
        return result

    def own_rows(self, maps: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Each map's samples ``[B, N]`` in its own type, in the order of its rows.

        Args:
            maps: ``[B, C, H, W]``.
            rows: the same at their own size, in the map type.
        """
        others = [n for n, x in enumerate(maps) if rows[n].dtype != x.dtype]
        launches = self.launches(self.device)
        made = self._rows(launches, [maps[n] for n in others], [maps[n].dtype for n in others])
        launches.run()
        result = [x.flatten(1) for x in rows]
        for n, x in zip(others, made, strict=True):
            result[n] = x.flatten(1)
        return result

    def finish_maps(
        self,
        feat_s: Sequence[Tensor],
        rows: Sequence[Tensor],
        parts: Sequence[Sequence[MapPart]],
        d_similarity: Tensor,
    ) -> list[Tensor]:
        """The gradient of each student map: of its resolutions, and through its similarities.

        Args:
            feat_s: ``[B, c, h, w]``.
            rows: their samples ``[B, N]`` in their own types, in the order of rows.
            parts: for each map the gradients of its resolutions.
            d_similarity: ``[S, B, B]``, not symmetric.

        Returns:
            Each of the shape and strides of its map, fp32 for fp16 maps.
        """
        launches = self.launches(self.device)
        results = [torch.empty_like(x, dtype=kept_dtype(x.dtype)) for x in feat_s]
        written = [_rows_or_columns(x) for x in results]
        for (dtype, kept), layers in grouped_by(
            [(x.dtype, out.dtype) for x, out in zip(rows, results, strict=True)], range(len(rows))
        ).items():
            tile = map_tile(dtype, self.acc_dtype, self.arch)
            vector = vector_of(min(dtype.itemsize, kept.itemsize), [feat_s[n].shape[1] for n in layers])
            work = []
            for n in layers:
                batch, channels, height, width = feat_s[n].shape
                (out, transposed), pixels = written[n], height * width
                further: list[Word] = []
                for part in parts[n]:
                    further += [aligned(part.d_x), *part.size, float(part.factor)]
                maps = (aligned(rows[n]), out, batch, n, d_similarity)
                sizes = (height, width, channels, int(transposed), int(pixels % vector == 0))
                words = (*maps, *sizes, len(parts[n]), Extra(tuple(further)))
                programs = tiles_of((batch, tile.block_m), (pixels, tile.block_p), (channels, tile.block_c))
                work.append(Work(programs, words))
            constants = {
                "TYPE": TYPES[dtype],
                "TO": TYPES[kept],
                "ACC": TYPES[self.acc_dtype],
                "VECTOR": vector,
                "BLOCK_M": tile.block_m,
                "BLOCK_P": tile.block_p,
                "BLOCK_C": tile.block_c,
                "BLOCK_K": tile.block_k,
                "PRECISION": self._precision(dtype),
            }
            launches.add(map_gradient_kernel, work, constants, options_of(tile.num_warps, tile.num_stages))
        launches.run()
        return [x if x is out else out.copy_(x) for (x, _), out in zip(written, results, strict=True)]

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.acc_dtype, device=self.device)

    def _rows(self, launches: Launches, maps: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        """Each map as rows of a type: itself where it is so already, else written by one launch for each two types."""
        result, work = [], []
        for x, dtype in zip(maps, dtypes, strict=True):
            rows = x.detach().permute(0, 2, 3, 1)
            if rows.is_contiguous() and x.dtype == dtype:
                result.append(aligned(rows))
                continue
            out = self._empty(*rows.shape, dtype=dtype)
            result.append(out)
            if rows.is_contiguous() or x.is_contiguous():
                work.append((x.detach(), out))
            else:
                out.copy_(rows)
        for (source, target), jobs in grouped_by([(x.dtype, out.dtype) for x, out in work], work).items():
            vector = 16 // min(source.itemsize, target.itemsize)
            tile = transpose_tile(min(source.itemsize, target.itemsize), self.arch)
            constants = {"FROM": TYPES[source], "TO": TYPES[target], "VECTOR": vector}
            blocks = {"BLOCK_P": tile.block_p, "BLOCK_C": tile.block_c}
            rows_of_work = [_transpose(x, out, vector, tile) for x, out in jobs]
            launches.add(rows_kernel, rows_of_work, {**constants, **blocks}, options_of(tile.num_warps))
        return result

    def _precision(self, dtype: torch.dtype) -> str:
        """Of products with rows; fp64 ignores it."""
        if not self.arch.startswith("sm_"):
            return "ieee"
        # 16-bit rows are exact in TF32
        is_allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "tf32" if dtype.itemsize == 2 or is_allowed else "ieee"


def _transpose(x: Tensor, out: Tensor, vector: int, tile: RowTile) -> Work:
    """A map ``[B, C, h, w]`` that is contiguous or rows, to rows."""
    batch, channels, height, width = x.shape
    x, pixels = _aligned_as_it_lies(x), height * width
    is_transposed = not x.permute(0, 2, 3, 1).is_contiguous()
    if not is_transposed:
        # a cast alone: any shape will do, also one whose rows fill a tile
        whole = x.numel() % tile.block_c == 0
        batch, channels = 1, tile.block_c if whole else channels
        pixels = x.numel() // channels
    programs = batch * tiles_of((pixels, tile.block_p), (channels, tile.block_c))
    fast = (int(pixels % vector == 0), int(channels % vector == 0))
    return Work(programs, (x, out, pixels, channels, int(is_transposed), *fast))


def _aligned_as_it_lies(x: Tensor) -> Tensor:
    """A dense map whose address a table can hold."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _rows_or_columns(x: Tensor) -> tuple[Tensor, bool]:
    """What is written of a map's gradient, and whether its pixels come last: itself, unless it has other strides."""
    if x.permute(0, 2, 3, 1).is_contiguous():
        return x, False
    return (x if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)), True
