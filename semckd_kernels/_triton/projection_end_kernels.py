"""The end of a projection: BatchNorm apply + ReLU + last 1x1 convolution + squared error, forward and backward.

Reference  PlainStages.end
Math       h = relu((z - mean)*scale + beta), r = h W^T - y, error[p] = sum_c r[p, c]^2
           d_r[p] = coef[sample of p]*r[p], d_h = (d_r W)*(h > 0), its sums sum_p d_h and sum_p d_h*(z - mean)
           d_W^T = sum_p (coef*h[p]) r[p]^T
Shapes     z, d_h [P, K], y and r [P, C], W [C, K], coef [B]; mean, scale, beta [K]
Fused      h, the projection, d_r and the squared difference are never written; r is kept between the kernels, in the
           maps' type: to compute it again would be a second product before the first one's epilogue
Traffic    u = P*C elements, K = 2C: forward z 2u + y u + r u, d_h r u + z 2u + d_h 2u, d_W r u + z 2u; W comes from the
           second-level cache once a row tile. Bandwidth bounds them up to some 250 channels, arithmetic beyond
Mapping    a program has BLOCK_M pixels x BLOCK_N channels, channels fastest, so that programs that read the same pixels
           run together. d_W: a tile of d_W^T for one split of the pixels, tiles fastest
Order      errors per pixel and channel tile, sums per row tile and d_W per split go to slots of their own, which
           ``sum_slots_kernel`` adds in order: repeats bitwise, wherever samples begin
Limits     P < 2^31. Channels are compile-time constants; 128-bit accesses where they are a multiple of a vector.
           coef of order one: coef*h is rounded to the maps' type
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .narrow import narrow
from .products import channel, pixels_product, plain, relu, rows_product, split_tile


@triton.jit
def _normalised(source, p, k, mask, K: tl.constexpr):
    """h, rounded to the type of z: ``(z_ptr, mean_ptr, scale_ptr, beta_ptr)``."""
    z_ptr, mean_ptr, scale_ptr, beta_ptr = source
    z = tl.load(z_ptr + p * K + k, mask=mask, other=0.0)
    mean, scale, beta = channel(mean_ptr, k, K), channel(scale_ptr, k, K), channel(beta_ptr, k, K)
    return narrow(relu((z.to(mean.dtype) - mean) * scale + beta), z.dtype)


@triton.jit
def _weighted(source, p, k, mask, K: tl.constexpr):
    """coef*h, rounded to the type of z: ``(z_ptr, mean, scale, beta, coef_ptr, first pixel, HW)``, constants loaded."""
    z_ptr, mean, scale, beta, coef_ptr, begin, HW = source
    z = tl.load(z_ptr + p * K + k, mask=mask, other=0.0)
    # past the split's end there may be no sample; the other operand is 0 there
    coef = tl.load(coef_ptr + (begin + p) // HW, mask=mask, other=0.0)
    return narrow(relu((z.to(mean.dtype) - mean) * scale + beta) * coef, z.dtype)


@triton.jit(do_not_specialize=["P"])
def end_fwd_kernel(
    z_ptr,  # [P, K]
    mean_ptr,  # [K], as scale and beta
    scale_ptr,
    beta_ptr,
    w_ptr,  # [C, K], of the maps' type
    y_ptr,  # [P, C]
    r_ptr,  # [P, C], out, or None
    error_ptr,  # [P, channel tiles], out
    P,
    C: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_n = tl.cdiv(C, BLOCK_N)
    tile_n = tl.program_id(0) % tiles_n
    begin = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M
    n = tl.minimum(P - begin, BLOCK_M).to(tl.int32)
    col = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    source = (z_ptr + begin * K, mean_ptr, scale_ptr, beta_ptr)
    acc = rows_product(_normalised, source, w_ptr, n, col, K, C, WIDE, BLOCK_M, BLOCK_K, PRECISION)
    row = tl.arange(0, BLOCK_M)
    at = row[:, None] * C + col[None, :]
    mask = (row < n)[:, None] & (col < C)[None, :]
    r = tl.where(mask, acc - tl.load(y_ptr + begin * C + at, mask=mask, other=0.0).to(WIDE), 0.0)
    if r_ptr is not None:
        tl.store(r_ptr + begin * C + at, narrow(r, r_ptr.dtype.element_ty), mask=mask)
    tl.store(error_ptr + (begin + row) * tiles_n + tile_n, tl.sum(r * r, 1), mask=row < n)


@triton.jit
def _d_h_columns(
    acc,
    row,
    k,
    n,
    coef,
    z_ptr,
    mean_ptr,
    scale_ptr,
    beta_ptr,
    d_h_ptr,
    slot_ptr,
    K: tl.constexpr,
):
    at = row[:, None] * K + k[None, :]
    mask = (row < n)[:, None] & (k < K)[None, :]
    mean = channel(mean_ptr, k, K)[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(acc.dtype) - mean
    h = z * channel(scale_ptr, k, K)[None, :] + channel(beta_ptr, k, K)[None, :]
    # coef is 0 past the last pixel. where z is NaN the gradient stays
    d = tl.where(h <= 0, 0.0, acc * coef[:, None])
    tl.store(slot_ptr + k, tl.sum(d, 0), mask=k < K)
    tl.store(slot_ptr + K + k, tl.sum(d * z, 0), mask=k < K)
    tl.store(d_h_ptr + at, narrow(d, d_h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["P", "HW"])
def end_d_h_kernel(
    r_ptr,  # [P, C]
    w_ptr,  # [K, C], the transposed weight, of the maps' type
    z_ptr,  # [P, K]
    mean_ptr,  # [K], as scale and beta
    scale_ptr,
    beta_ptr,
    coef_ptr,  # [B]
    d_h_ptr,  # [P, K], out
    slots_ptr,  # [row tiles, 2, K], out
    P,
    HW,
    C: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_n = tl.cdiv(K, BLOCK_N)
    tile_m = (tl.program_id(0) // tiles_n).to(tl.int64)
    first = tl.program_id(0) % tiles_n * BLOCK_N
    begin = tile_m * BLOCK_M
    n = tl.minimum(P - begin, BLOCK_M).to(tl.int32)
    col = first + tl.arange(0, BLOCK_N)
    source = (r_ptr + begin * C,)
    acc = rows_product(plain, source, w_ptr, n, col, C, K, WIDE, BLOCK_M, BLOCK_K, PRECISION)

    row = tl.arange(0, BLOCK_M)
    coef = tl.load(coef_ptr + (begin.to(tl.int32) + row) // HW, mask=row < n, other=0.0)
    z_ptr += begin * K
    d_h_ptr += begin * K
    slots_ptr += tile_m * 2 * K
    # half the columns at a time: z, d_h and the channels' constants need half the registers
    half: tl.constexpr = BLOCK_N // 2
    left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, half)), (0, 2, 1)))
    k = first + tl.arange(0, half)
    _d_h_columns(left, row, k, n, coef, z_ptr, mean_ptr, scale_ptr, beta_ptr, d_h_ptr, slots_ptr, K)
    k += half
    _d_h_columns(right, row, k, n, coef, z_ptr, mean_ptr, scale_ptr, beta_ptr, d_h_ptr, slots_ptr, K)


@triton.jit(do_not_specialize=["P", "pixels_per_split", "HW"])
def end_d_weight_kernel(
    z_ptr,  # [P, K]
    mean_ptr,  # [K], as scale and beta
    scale_ptr,
    beta_ptr,
    coef_ptr,  # [B]
    r_ptr,  # [P, C]
    slots_ptr,  # [splits, C, K], out
    P,
    pixels_per_split,
    HW,
    C: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, begin, n, i, j = split_tile(P, pixels_per_split, K, C, BLOCK_M, BLOCK_N)
    mean, scale, beta = channel(mean_ptr, i, K), channel(scale_ptr, i, K), channel(beta_ptr, i, K)
    h = (z_ptr + begin * K, mean[:, None], scale[:, None], beta[:, None], coef_ptr, begin.to(tl.int32), HW)
    r = (r_ptr + begin * C,)
    # the computed operand is the first, which tensor cores take from registers
    acc, _ = pixels_product(_weighted, h, plain, r, n, i, j, K, C, WIDE, BLOCK_K, PRECISION, False)
    mask = (i < K)[:, None] & (j < C)[None, :]
    tl.store(slots_ptr + split * C * K + j[None, :] * K + i[:, None], acc, mask=mask)
