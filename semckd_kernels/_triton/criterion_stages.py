"""The criterion's stages in Triton: the host side of ``linear_kernels.py``, ``batch_norm_kernels.py`` and
``projection_end_kernels.py``. The 3x3 convolution itself is the vendor library's.

The arguments have been checked by the caller: rows are contiguous, of one map type, on one device; ``P < 2^31``.
Nothing here waits for the device, uploads or depends on data, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..criterion.stages import EndResult, TorchMatrices
from .batch_norm_kernels import d_z_kernel, merge_moments_kernel, moments_kernel
from .config import device_arch
from .convolution import conv3x3_backward
from .criterion_config import (
    MERGE_BLOCK,
    STATISTICS_PROGRAMS,
    SUM_BLOCK,
    SUM_BLOCK_OF_ONE,
    SUM_GROUP,
    SUM_WARPS,
    ProductTile,
    epilogue_tile,
    fp16_factor,
    pixels_tile,
    row_tile,
    rows_tile,
    split_pixels,
)
from .launch import TYPES, on
from .linear_kernels import covariance_kernel, linear_d_weight_kernel, linear_kernel
from .projection_end_kernels import end_d_h_kernel, end_d_weight_kernel, end_fwd_kernel
from .sum_kernels import sum_slots_kernel


def _pixels(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or _wide(like), device=like.device)


def _operand(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix as tensor cores read it: of the operands' type, row after row."""
    if weight.dtype == dtype and weight.is_contiguous():
        return weight
    return torch.empty(weight.shape, dtype=dtype, device=weight.device).copy_(weight)


def _precision(arch: str) -> str:
    """Of products of fp32 that take the place of convolutions; other types ignore it."""
    # this flag, since the older allow_tf32 raises where both kinds were set
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    # who turns TF32 off has the 3x3 without tensor cores as well, next to which three TF32 products would save little
    return "tf32" if tf32 and arch.startswith("sm_") else "ieee"


def _blocks(tile: ProductTile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}


def _options(num_warps: int, num_stages: int = 1) -> dict[str, Any]:
    # fusion is named since triton is going to change its default
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


class TritonStages(TorchMatrices):
    """See :class:`semckd_kernels.criterion.stages.Stages`."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c = x.shape[-1]
        mean, _ = self._statistics(x)
        # differences, made so much smaller by a power of two that a sum of squares overflows only if their mean does.
        # fp64 has range enough, and its divisor is an integer, which is exact
        pixels = _pixels(x)
        shrink = 1.0 if x.dtype == torch.float64 else 2.0 ** -math.ceil(math.log2(pixels) / 2)
        divisor = pixels if shrink == 1 else pixels * shrink**2
        # the operands are of the wide type
        covariance = self._over_pixels(
            covariance_kernel, (x, mean), (c, c), (c, c), _wide(x), {"N": c}, (shrink,), divisor=divisor
        )
        return mean, covariance

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        self._linear(x, None, _operand(weight, x.dtype), bias, h, relu=True)

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        z = torch.ops.aten.convolution(
            h.permute(0, 3, 1, 2), _conv_weight(weight, h.dtype), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )
        # a library that answers in another layout costs a copy here, and nothing where it does not
        z = z.permute(0, 2, 3, 1).contiguous()
        return (z, *self._statistics(z)) if statistics else (z, None, None)

    def end(
        self,
        z: Tensor,
        mean: Tensor,
        scale: Tensor,
        beta: Tensor,
        weight: Tensor,
        y: Tensor,
        coef: Tensor | None,
        d_h: Tensor | None,
    ) -> EndResult:
        (c, k), pixels, arch = weight.shape, _pixels(z), self._arch(z.device)
        norm, pixels_of_one = (mean, scale, beta), pixels // len(z)
        sizes = {"C": c, "K": k, "WIDE": TYPES[_wide(z)], "PRECISION": _precision(arch)}
        r = None if coef is None or d_h is None else torch.empty_like(y, dtype=z.dtype)
        tile = rows_tile(c, k, z.dtype, arch)
        tiles = -(-c // tile.block_n)
        errors = _empty(z, pixels, tiles)
        self._launch(
            end_fwd_kernel,
            (-(-pixels // tile.block_m) * tiles,),
            (z, *norm, _operand(weight, z.dtype), y, r, errors, pixels),
            {**sizes, **_blocks(tile)},
            _options(tile.num_warps, tile.num_stages),
        )
        squared_error = self._sum(errors.view(-1, 1), group=pixels_of_one * tiles).view(-1)
        if coef is None or d_h is None or r is None:
            return EndResult(squared_error, None, None, None)

        tile = epilogue_tile(k, c, z.dtype, arch)
        row_tiles = -(-pixels // tile.block_m)
        slots = _empty(z, row_tiles, 2, k)
        self._launch(
            end_d_h_kernel,
            (row_tiles * -(-k // tile.block_n),),
            (r, _operand(weight.t(), z.dtype), z, *norm, coef, d_h, slots, pixels, pixels_of_one),
            {**sizes, **_blocks(tile)},
            _options(tile.num_warps, tile.num_stages),
        )
        constants = {"C": c, "K": k, "PRECISION": _precision(arch)}
        maps = (z, *norm, coef, r)
        d_weight = self._over_pixels(end_d_weight_kernel, maps, (k, c), (c, k), z.dtype, constants, (pixels_of_one,))
        return EndResult(squared_error, d_weight, *self._sum(slots).unbind())

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        channels, pixels = z.shape[-1], _pixels(z)
        # exact, a power of two: d_z and with it d_weight are smaller, the weight on the way to d_h1 larger
        factor = fp16_factor(pixels) if z.dtype == torch.float16 else 1.0
        tile = row_tile(channels, z.dtype, self._arch(z.device))
        self._launch(
            d_z_kernel,
            (-(-pixels // tile.block_p), -(-channels // tile.block_c)),
            (d_h2, z, a, b, c, pixels, factor),
            {"C": channels, "WIDE": TYPES[_wide(z)], "BLOCK_P": tile.block_p, "BLOCK_C": tile.block_c},
            _options(tile.num_warps),
        )
        d_h1, d_weight = conv3x3_backward(
            d_h2.permute(0, 3, 1, 2),
            h.permute(0, 3, 1, 2),
            _conv_weight(weight if factor == 1 else weight / factor, h.dtype),
        )
        if d_weight.dtype != _wide(z) or d_weight.stride() != weight.stride():
            # strided as the parameter, whose gradient it becomes
            d_weight = torch.empty_like(weight, dtype=_wide(z)).copy_(d_weight)
        if factor != 1:
            d_weight /= factor
        return d_h1.permute(0, 2, 3, 1).contiguous(), d_weight

    def linear_relu_backward(
        self, x: Tensor, h: Tensor, d_h: Tensor, weight: Tensor, d_x: Tensor, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        self._linear(d_h, h, _operand(weight.t(), x.dtype), None, d_x, add=accumulate)
        k, n = weight.shape
        constants = {"K": k, "N": n, "PRECISION": _precision(self._arch(x.device))}
        sums = self._over_pixels(linear_d_weight_kernel, (d_h, h, x), (k, n), (k * n + k,), x.dtype, constants)
        d_weight, d_bias = sums.split((k * n, k))
        return d_weight.view(k, n), d_bias

    def linear_add_(self, x: Tensor, weight: Tensor, bias: Tensor, d_x: Tensor) -> None:
        # the weight stays wide: divided by the number of pixels, it may be too small for fp16. TF32 holds what bf16
        # and fp16 maps have, so nothing else is lost
        self._linear(x, None, _operand(weight, _wide(x)), bias, d_x, add=True)

    def _linear(
        self,
        x: Tensor,
        h: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        relu: bool = False,
        add: bool = False,
    ) -> None:
        """``out (+)= weight @ x + bias``; where ``h`` is given, x is masked by ``h > 0``."""
        (n, k), pixels, arch = weight.shape, _pixels(x), self._arch(x.device)
        tile = (epilogue_tile if out.dtype != x.dtype or add else rows_tile)(n, k, weight.dtype, arch)
        # 16-bit maps are exact in TF32; where the weight has their type too, this is ignored
        tf32 = x.dtype in (torch.float16, torch.bfloat16) and arch.startswith("sm_")
        self._launch(
            linear_kernel,
            (-(-pixels // tile.block_m) * -(-n // tile.block_n),),
            (x, h, weight, bias, out, pixels),
            {
                "K": k,
                "N": n,
                "RELU": relu,
                "ADD": add,
                "WIDE": TYPES[_wide(x)],
                "PRECISION": "tf32" if tf32 else _precision(arch),
                **_blocks(tile),
            },
            _options(tile.num_warps, tile.num_stages),
        )

    def _over_pixels(
        self,
        kernel: Any,
        maps: tuple[Tensor, ...],
        channels: tuple[int, int],
        slot: tuple[int, ...],
        dtype: torch.dtype,
        constants: dict[str, Any],
        sizes: tuple[float, ...] = (),
        divisor: float = 1,
    ) -> Tensor:
        """A product that sums over pixels: each split of them to a slot, then the slots.

        Args:
            kernel: takes ``maps``, slots, P, pixels a split, ``sizes``.
            channels: of the computed operand, which is the product's rows, and of the other.
            slot: what a split leaves.
            dtype: type of the operands.
        """
        x = maps[0]
        pixels, (m, n) = _pixels(x), channels
        tile = pixels_tile(m, n, dtype, self._arch(x.device))
        tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
        split = split_pixels(pixels, tiles, max(m, n), tile.block_k)
        splits = -(-pixels // split)
        slots = _empty(x, splits, *slot)
        self._launch(
            kernel,
            (splits * tiles,),
            (*maps, slots, pixels, split, *sizes),
            {**constants, "WIDE": TYPES[_wide(x)], **_blocks(tile)},
            _options(tile.num_warps, tile.num_stages),
        )
        return self._sum(slots, divisor=divisor)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel over pixels."""
        channels, pixels, wide = x.shape[-1], _pixels(x), TYPES[_wide(x)]
        tile = row_tile(channels, x.dtype, self._arch(x.device))
        tiles = -(-channels // tile.block_c)
        run = split_pixels(pixels, tiles, channels, tile.block_p, STATISTICS_PROGRAMS)
        runs = -(-pixels // run)
        anchor, out = _empty(x, channels), _empty(x, 2, channels)
        # apart: where one begins must not depend on how many runs there are, or an odd alignment compiles anew
        shifts, m2s = _empty(x, runs, channels), _empty(x, runs, channels)
        self._launch(
            moments_kernel,
            (runs, tiles),
            (x, anchor, shifts, m2s, pixels, run),
            {
                "C": channels,
                "WIDE": wide,
                "BLOCK_P": tile.block_p,
                "BLOCK_C": tile.block_c,
                "STAGES": tile.num_stages,
            },
            _options(tile.num_warps),
        )
        block_r, block_c = MERGE_BLOCK
        self._launch(
            merge_moments_kernel,
            (-(-channels // block_c),),
            (anchor, shifts, m2s, out, pixels, run, runs),
            {"C": channels, "WIDE": wide, "BLOCK_R": block_r, "BLOCK_C": block_c},
            _options(SUM_WARPS),
        )
        mean, variance = out.unbind()
        return mean, variance

    def _sum(self, slots: Tensor, group: int | None = None, divisor: float = 1) -> Tensor:
        """Sums of ``slots [total, ...]`` over groups of slots, or over all, divided."""
        total, inner = slots.shape[0], slots[0].numel()
        if group is None and total > SUM_GROUP:
            slots, total = self._sum(slots, SUM_GROUP), -(-total // SUM_GROUP)
        groups = -(-total // (group or total))
        out = torch.empty((groups, *slots.shape[1:]), dtype=slots.dtype, device=slots.device)
        block_r, block_i = SUM_BLOCK_OF_ONE if inner == 1 else SUM_BLOCK
        self._launch(
            sum_slots_kernel,
            (groups * -(-inner // block_i),),
            (slots, out, total, group or total, divisor, inner),
            {"WIDE": TYPES[slots.dtype], "BLOCK_R": block_r, "BLOCK_I": block_i},
            _options(SUM_WARPS),
        )
        return out if group is not None else out[0]

    def _arch(self, device: torch.device) -> str:
        return device_arch(device)

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: tuple[Tensor | float | None, ...],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        with on(next(x for x in arguments if isinstance(x, Tensor)).device):
            kernel[grid](*arguments, **constants, **options)


def _conv_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype, memory_format=torch.channels_last)
