"""1x1 convolutions over rows, forward and backward, and the covariance of a map's channels.

Reference  PlainStages.linear_relu, linear_relu_backward, linear_add_, moments
Math       linear: out[p] = relu(W x[p] + bias), or out[p] += W x[p] + bias, or with d = d_h*(h > 0) for x
           d_weight: sum_p d[p] x[p]^T and sum_p d[p];  covariance: shrink^2 sum_p (x[p] - mean)(x[p] - mean)^T
Shapes     x [P, K] or d_h, h [P, K] -> out [P, N], W [N, K];  d_weight: d_h, h [P, K], x [P, c] -> [K, c], [K]
Fused      the pre-activation and the masked gradient d are never written
Traffic    linear reads x and writes out, with the mask it reads two maps, added to it reads out as well; W comes from
           the second-level cache once a row tile. d_weight reads three maps, covariance one. Bandwidth bounds them up
           to some 250 channels, arithmetic beyond; the covariance is fp32 arithmetic without tensor cores
Mapping    linear: a program has BLOCK_M pixels x BLOCK_N channels, channels fastest, so that programs that read the
           same pixels run together. Sums over pixels: a program has one tile of the result for one split of the
           pixels, tiles fastest
Order      a split's sum goes to its own slot, ``sum_slots_kernel`` adds slots in order: repeats bitwise
Limits     P < 2^31. Channels are compile-time constants; 128-bit accesses where they are a multiple of a vector
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .narrow import narrow
from .products import channel, masked, pixels_product, plain, relu, rows_product, split_tile


@triton.jit(do_not_specialize=["P"])
def linear_kernel(
    x_ptr,  # [P, K]
    h_ptr,  # [P, K]; not None: x is a gradient, and h > 0 its mask
    w_ptr,  # [N, K], its type is the product's
    bias_ptr,  # [N], wide, or None
    out_ptr,  # [P, N]
    P,
    K: tl.constexpr,
    N: tl.constexpr,
    RELU: tl.constexpr,
    ADD: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_n = tl.cdiv(N, BLOCK_N)
    begin = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M
    n = tl.minimum(P - begin, BLOCK_M).to(tl.int32)
    col = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_ptr += begin * K
    if h_ptr is None:
        acc = rows_product(plain, (x_ptr,), w_ptr, n, col, K, N, WIDE, BLOCK_M, BLOCK_K, PRECISION)
    else:
        source = (x_ptr, h_ptr + begin * K)
        acc = rows_product(masked, source, w_ptr, n, col, K, N, WIDE, BLOCK_M, BLOCK_K, PRECISION)
    row = tl.arange(0, BLOCK_M)[:, None]
    out_ptr += begin * N
    at = row * N + col[None, :]
    mask = (row < n) & (col < N)[None, :]
    if bias_ptr is not None:
        acc += channel(bias_ptr, col, N)[None, :]
    if RELU:
        acc = relu(acc)
    if ADD:
        acc += tl.load(out_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, narrow(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["P", "pixels_per_split"])
def linear_d_weight_kernel(
    d_h_ptr,  # [P, K]
    h_ptr,  # [P, K]
    x_ptr,  # [P, N]
    slots_ptr,  # [splits, K*N + K], out: the matrix and the sums of d
    P,
    pixels_per_split,
    K: tl.constexpr,
    N: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, begin, n, i, j = split_tile(P, pixels_per_split, K, N, BLOCK_M, BLOCK_N)
    d = (d_h_ptr + begin * K, h_ptr + begin * K)
    x = (x_ptr + begin * N,)
    acc, total = pixels_product(masked, d, plain, x, n, i, j, K, N, WIDE, BLOCK_K, PRECISION, True)
    mask = (i < K)[:, None] & (j < N)[None, :]
    slots_ptr += split * (K * N + K)
    tl.store(slots_ptr + i[:, None] * N + j[None, :], acc, mask=mask)
    if tl.program_id(0) % tl.cdiv(N, BLOCK_N) == 0:
        tl.store(slots_ptr + K * N + i, total, mask=i < K)


@triton.jit
def _centred(source, p, c, mask, C: tl.constexpr):
    """``(x_ptr, mean, factor)``, mean of the channels ``c``. 0 where no pixel is: the other operand relies on it."""
    x_ptr, mean, factor = source
    return tl.where(mask, (tl.load(x_ptr + p * C + c, mask=mask, other=0.0).to(mean.dtype) - mean) * factor, 0.0)


@triton.jit(do_not_specialize=["P", "pixels_per_split", "shrink"])
def covariance_kernel(
    x_ptr,  # [P, N]
    mean_ptr,  # [N]
    slots_ptr,  # [splits, N, N], out
    P,
    pixels_per_split,
    shrink,  # a power of two: the sum's is shrink^2 times the covariance's
    N: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split, begin, n, i, j = split_tile(P, pixels_per_split, N, N, BLOCK_M, BLOCK_N)
    x_ptr += begin * N
    left = (x_ptr, channel(mean_ptr, i, N)[:, None], tl.cast(shrink, WIDE))
    right = (x_ptr, channel(mean_ptr, j, N)[None, :], tl.cast(shrink, WIDE))
    # a statistic: never in TF32, whatever torch's flags say
    acc, _ = pixels_product(_centred, left, _centred, right, n, i, j, N, N, WIDE, BLOCK_K, "ieee", False)
    mask = (i < N)[:, None] & (j < N)[None, :]
    tl.store(slots_ptr + split * N * N + i[:, None] * N + j[None, :], acc, mask=mask)
