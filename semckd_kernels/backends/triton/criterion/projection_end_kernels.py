"""The end of a projection: BatchNorm apply + ReLU + last 1x1 convolution + squared error, forward and backward, for all
pairs of a chunk.

Reference  PlainStages.end
Math       h = relu((z - mean)*scale + beta), r = h W^T - y, error[p] = sum_c r[p, c]^2, mse[b] = sum_p error[p] / N
           d_r[p] = coef[sample of p]*r[p], d_h = (d_r W)*(h > 0), its sums sum_p d_h and sum_p d_h*(z - mean)
           d_W = sum_p r[p] (coef*h[p])^T;  coef = coefficient * alpha
Shapes     z, d_h [P, K], y and r [P, C], W [C, K], alpha [B, Q]; mean, scale, beta [K]; P, K and C differ by row
Fused      h, the projection, d_r and the squared difference are never written; r is kept between the kernels, in the
           maps' type: to compute it again would be a second product before the first one's epilogue
Traffic    u = P*C elements, K = 2C: forward z 2u + y u + r u, d_h r u + z 2u + d_h 2u, d_W r u + z 2u; W comes from the
           second-level cache once a row tile. Bandwidth bounds them up to some 250 channels, arithmetic beyond
Mapping    a program has BLOCK_M pixels x BLOCK_N channels, channels fastest, so that programs that read the same pixels
           run together. d_W: a tile of d_W^T for one split of the pixels, tiles fastest. errors: a sample of a pair
Order      errors per pixel and channel tile, sums per row tile and d_W per split go to slots of their own, which
           ``errors_kernel`` and ``sum_slots_kernel`` add in order: repeats bitwise, wherever samples begin
Limits     P < 2^31. 128-bit accesses where channels are multiples of VECTOR. coef of order one: coef*h is rounded to
           the maps' type
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, pointer, real, size
from .products import channel, pixels_product, plain, relu, row_tile, rows_product, split_tile


@triton.jit
def _normalised(source, p, k, mask, K):
    """h, rounded to the type of z: ``(z_ptr, mean_ptr, scale_ptr, beta_ptr)``."""
    z_ptr, mean_ptr, scale_ptr, beta_ptr = source
    z = tl.load(z_ptr + p * K + k, mask=mask, other=0.0)
    mean, scale, beta = channel(mean_ptr, k, K), channel(scale_ptr, k, K), channel(beta_ptr, k, K)
    return cast(relu((z.to(mean.dtype) - mean) * scale + beta), z.dtype)


@triton.jit
def _weighted(source, p, k, mask, K):
    """coef*h, rounded to the type of z: ``(z_ptr, mean, scale, beta, coefs)``, constants of the channels loaded;
    ``coefs`` is ``(alpha_ptr, Q, coefficient, first pixel, HW)``."""
    z_ptr, mean, scale, beta, coefs = source
    z = tl.load(z_ptr + p * K + k, mask=mask, other=0.0)
    alpha_ptr, Q, coefficient, begin, HW = coefs
    # past the split's end there may be no sample; the other operand is 0 there
    coef = tl.load(alpha_ptr + (begin + p) // HW * Q, mask=mask, other=0.0) * coefficient
    return cast(relu((z.to(mean.dtype) - mean) * scale + beta) * coef, z.dtype)


@triton.jit(do_not_specialize=["rows"])
def end_fwd_kernel(
    table_ptr,  # rows: z, mean, scale, beta, weight of the maps' type, y, out: r, errors [P, channel tiles]; P, K, C
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP: tl.constexpr,  # whether r is wanted
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    K, C = channels(row, 10, VECTOR), channels(row, 11, VECTOR)
    begin, n, col = row_tile(program, size(row, 9), C, BLOCK_M, BLOCK_N)
    source = (pointer(row, 1, MAP) + begin * K, pointer(row, 2, ACC), pointer(row, 3, ACC), pointer(row, 4, ACC))
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = rows_product(_normalised, source, pointer(row, 5, MAP), acc, n, col, K, C, BLOCK_K, PRECISION)
    p = tl.arange(0, BLOCK_M)
    at = p[:, None] * C + col[None, :]
    mask = (p < n)[:, None] & (col < C)[None, :]
    y = tl.load(pointer(row, 6, MAP) + begin * C + at, mask=mask, other=0.0)
    r = tl.where(mask, acc - y.to(ACC), 0.0)
    if KEEP:
        tl.store(pointer(row, 7, MAP) + begin * C + at, cast(r, MAP), mask=mask)
    tiles_n = tl.cdiv(C, BLOCK_N)
    tl.store(pointer(row, 8, ACC) + (begin + p) * tiles_n + program % tiles_n, tl.sum(r * r, 1), mask=p < n)


@triton.jit(do_not_specialize=["rows"])
def errors_kernel(
    table_ptr,  # rows: errors [B, count], out: mse [B, Q]; count, Q, q, N; a program has a sample
    rows,
    ROW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, b = find_row(table_ptr, rows, ROW)
    count = size(row, 3)
    # samples begin anywhere
    errors_ptr = tl.load(row + 1).to(tl.pointer_type(ACC)) + b.to(tl.int64) * count
    acc = tl.zeros((BLOCK,), ACC)
    for e0 in range(0, count, BLOCK):
        e = e0 + tl.arange(0, BLOCK)
        acc += tl.load(errors_ptr + e, mask=e < count, other=0.0)
    mse = tl.sum(acc, 0) / tl.load(row + 6).to(ACC)
    tl.store(pointer(row, 2, ACC) + b.to(tl.int64) * size(row, 4) + size(row, 5), mse)


@triton.jit
def _d_h_columns(acc, row, p, k, n, begin, tile, coef, K, MAP: tl.constexpr, ACC: tl.constexpr):
    at = begin * K + p[:, None] * K + k[None, :]
    mask = (p < n)[:, None] & (k < K)[None, :]
    mean = channel(pointer(row, 4, ACC), k, K)[None, :]
    z = tl.load(pointer(row, 3, MAP) + at, mask=mask, other=0.0).to(ACC) - mean
    h = z * channel(pointer(row, 5, ACC), k, K)[None, :] + channel(pointer(row, 6, ACC), k, K)[None, :]
    # coef is 0 past the last pixel. where z is NaN the gradient stays
    d = tl.where(h <= 0, 0.0, acc * coef[:, None])
    tl.store(pointer(row, 9, ACC) + tile * K + k, tl.sum(d, 0), mask=k < K)
    tl.store(pointer(row, 10, ACC) + tile * K + k, tl.sum(d * z, 0), mask=k < K)
    tl.store(pointer(row, 8, MAP) + at, cast(d, MAP), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def end_d_h_kernel(
    # rows: r, transposed weight [K, C] of the maps' type, z, mean, scale, beta, alpha, out: d_h, slots of sums of d_h
    # and of d_h*(z - mean) [row tiles, K]; P, K, C, HW, Q, q, coefficient
    table_ptr,
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    K, C = channels(row, 12, VECTOR), channels(row, 13, VECTOR)
    begin, n, col = row_tile(program, size(row, 11), K, BLOCK_M, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    source = (pointer(row, 1, MAP) + begin * C,)
    acc = rows_product(plain, source, pointer(row, 2, MAP), acc, n, col, C, K, BLOCK_K, PRECISION)

    p = tl.arange(0, BLOCK_M)
    sample = (begin.to(tl.int32) + p) // size(row, 14)
    coef = tl.load(pointer(row, 7, ACC) + sample * size(row, 15) + size(row, 16), mask=p < n, other=0.0)
    coef *= real(row, 17, ACC)
    # half the columns at a time: z, d_h and the channels' constants need half the registers
    half: tl.constexpr = BLOCK_N // 2
    left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, half)), (0, 2, 1)))
    tile = begin // BLOCK_M
    k = program % tl.cdiv(K, BLOCK_N) * BLOCK_N + tl.arange(0, half)
    _d_h_columns(left, row, p, k, n, begin, tile, coef, K, MAP, ACC)
    _d_h_columns(right, row, p, k + half, n, begin, tile, coef, K, MAP, ACC)


@triton.jit(do_not_specialize=["rows"])
def end_d_weight_kernel(
    # rows: z, mean, scale, beta, alpha, r, out: slots [splits, C, K]; P, pixels a split, K, C, HW, Q, q, coefficient
    table_ptr,
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    K, C = channels(row, 10, VECTOR), channels(row, 11, VECTOR)
    split, begin, n, i, j = split_tile(program, size(row, 8), size(row, 9), K, C, BLOCK_M, BLOCK_N)
    mean, scale = channel(pointer(row, 2, ACC), i, K), channel(pointer(row, 3, ACC), i, K)
    beta = channel(pointer(row, 4, ACC), i, K)
    alpha_ptr = pointer(row, 5, ACC) + size(row, 14)
    coefs = (alpha_ptr, size(row, 13), real(row, 15, ACC), begin.to(tl.int32), size(row, 12))
    h = (pointer(row, 1, MAP) + begin * K, mean[:, None], scale[:, None], beta[:, None], coefs)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    r = (pointer(row, 6, MAP) + begin * C,)
    # the computed operand is the first, which tensor cores take from registers
    acc, _ = pixels_product(_weighted, h, plain, r, acc, n, i, j, K, C, BLOCK_K, PRECISION, False)
    at = split * C * K + j[None, :] * K + i[:, None]
    tl.store(pointer(row, 7, ACC) + at, acc, mask=(i < K)[:, None] & (j < C)[None, :])
