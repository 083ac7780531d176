"""1x1 convolutions over rows, forward and backward, and the covariance of a map's channels, for all pairs of a chunk.

Reference  PlainStages.linear_relu, linear_relu_backward, linear_add_, moments
Math       linear: h[p] = relu(W x[p] + bias)
           d_x[p] = sum_pairs (d_h[p]*(h[p] > 0)) W^T + M x[p] + bias
           d_weight: sum_p d[p] x[p]^T and sum_p d[p];  covariance: shrink^2 sum_p (x[p] - mean)(x[p] - mean)^T
Shapes     x, d_x [P, c]; h, d_h [P, K]; W [K, c], for the way back [c, K]; M [c, c]; P, c and K differ from row to row
Fused      the pre-activation and the masked gradient d are never written; d_x is written once, whatever its pairs
Traffic    linear reads x and writes h; d_x reads two maps a pair and x, and writes d_x; W comes from the second-level
           cache once a row tile. d_weight reads three maps, covariance one. Bandwidth bounds them up to some 250
           channels, arithmetic beyond; the covariance is fp32 arithmetic without tensor cores
Mapping    linear, d_x: a program has BLOCK_M pixels x BLOCK_N channels, channels fastest. d_x goes through the pairs of
           its input one after the other, as if their K were one. Sums over pixels: a program has one tile of the result
           for one split of the pixels, tiles fastest
Order      d_x adds pairs in the order of the table, in registers; a split's sum goes to its own slot, and
           ``sum_slots_kernel`` adds slots in order: repeats bitwise
Limits     P < 2^31. 128-bit accesses where channels are multiples of VECTOR, one element at a time elsewhere
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, pointer, real, size
from .products import channel, masked, pixels_product, plain, relu, row_tile, rows_product, split_tile


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    table_ptr,  # rows: x, weight of the maps' type, bias, h; P, K, N
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
    x_ptr, w_ptr, h_ptr = pointer(row, 1, MAP), pointer(row, 2, MAP), pointer(row, 4, MAP)
    K, N = channels(row, 6, VECTOR), channels(row, 7, VECTOR)
    begin, n, col = row_tile(program, size(row, 5), N, BLOCK_M, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = rows_product(plain, (x_ptr + begin * K,), w_ptr, acc, n, col, K, N, BLOCK_K, PRECISION)
    acc = relu(acc + channel(pointer(row, 3, ACC), col, N)[None, :])
    p = tl.arange(0, BLOCK_M)[:, None]
    mask = (p < n) & (col < N)[None, :]
    tl.store(h_ptr + begin * N + p * N + col[None, :], cast(acc, MAP), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def d_x_kernel(
    table_ptr,  # rows: x, M, bias, d_x; P, c, number of pairs, where they are, whether to add M x + bias, and to d_x
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    M_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    C = channels(row, 6, VECTOR)
    begin, n, col = row_tile(program, size(row, 5), C, BLOCK_M, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    # a pair: d_h, h, weight for the way back [c, K], K
    pair = table_ptr + tl.load(row + 8)
    for _ in range(size(row, 7)):
        K = channels(pair, 3, VECTOR)
        source = (pointer(pair, 0, MAP) + begin * K, pointer(pair, 1, MAP) + begin * K)
        acc = rows_product(masked, source, pointer(pair, 2, MAP), acc, n, col, K, C, BLOCK_K, PRECISION)
        pair += 4
    if size(row, 9) != 0:
        # M has the accumulation type: divided by the number of pixels, it may be too small for fp16. TF32 holds what
        # bf16 and fp16 maps have, so nothing else is lost
        x = (pointer(row, 1, MAP) + begin * C,)
        acc = rows_product(plain, x, pointer(row, 2, ACC), acc, n, col, C, C, BLOCK_K, M_PRECISION)
        acc += channel(pointer(row, 3, ACC), col, C)[None, :]
    p = tl.arange(0, BLOCK_M)[:, None]
    at = begin * C + p * C + col[None, :]
    mask = (p < n) & (col < C)[None, :]
    d_x_ptr = pointer(row, 4, ACC)
    if size(row, 10) != 0:
        acc += tl.load(d_x_ptr + at, mask=mask, other=0.0)
    tl.store(d_x_ptr + at, acc, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def linear_d_weight_kernel(
    table_ptr,  # rows: d_h, h, x, slots [splits, K, N], slots [splits, K]; P, pixels a split, K, N
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
    K, N = channels(row, 8, VECTOR), channels(row, 9, VECTOR)
    split, begin, n, i, j = split_tile(program, size(row, 6), size(row, 7), K, N, BLOCK_M, BLOCK_N)
    d = (pointer(row, 1, MAP) + begin * K, pointer(row, 2, MAP) + begin * K)
    x = (pointer(row, 3, MAP) + begin * N,)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc, total = pixels_product(masked, d, plain, x, acc, n, i, j, K, N, BLOCK_K, PRECISION, True)
    at = split * K * N + i[:, None] * N + j[None, :]
    tl.store(pointer(row, 4, ACC) + at, acc, mask=(i < K)[:, None] & (j < N)[None, :])
    if program % tl.cdiv(N, BLOCK_N) == 0:
        tl.store(pointer(row, 5, ACC) + split * K + i, total, mask=i < K)


@triton.jit
def _centred(source, p, c, mask, C):
    """``(x_ptr, mean, factor)``, mean of the channels ``c``. 0 where no pixel is: the other operand relies on it."""
    x_ptr, mean, factor = source
    return tl.where(mask, (tl.load(x_ptr + p * C + c, mask=mask, other=0.0).to(mean.dtype) - mean) * factor, 0.0)


@triton.jit(do_not_specialize=["rows"])
def covariance_kernel(
    table_ptr,  # rows: x, mean, slots [splits, C, C]; P, pixels a split, C, shrink, a power of two
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    C = channels(row, 6, VECTOR)
    split, begin, n, i, j = split_tile(program, size(row, 4), size(row, 5), C, C, BLOCK_M, BLOCK_N)
    x_ptr, mean_ptr = pointer(row, 1, MAP) + begin * C, pointer(row, 2, ACC)
    left = (x_ptr, channel(mean_ptr, i, C)[:, None], real(row, 7, ACC))
    right = (x_ptr, channel(mean_ptr, j, C)[None, :], real(row, 7, ACC))
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    # a statistic: never in TF32, whatever torch's flags say
    acc, _ = pixels_product(_centred, left, _centred, right, acc, n, i, j, C, C, BLOCK_K, "ieee", False)
    at = split * C * C + i[:, None] * C + j[None, :]
    tl.store(pointer(row, 3, ACC) + at, acc, mask=(i < C)[:, None] & (j < C)[None, :])
