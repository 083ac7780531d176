"""The first BatchNorm as algebra on vectors and small matrices, forward and backward, for all pairs of a chunk.

Reference  plain_algebra.py of the tests: Moments.of_linear, BatchNorm.of, linear_backward
Math       fold: m = W mu, v = diag(W S W^T), r = 1/sqrt(v + eps), W' = gamma r W, b' = beta - gamma r m
           backward, from A = sum_p d_p x_p^T and s = sum_p d_p: d_gamma = r (rowdot(A, W) - s m),
           dW = gamma r (A - s mu^T - r d_gamma W S); with q = gamma r^2 d_gamma and e = q m - gamma r s
           input terms: M = -1/P sum_pairs W^T diag(q) W, bias = 1/P sum_pairs W^T e, so that d_x += M x + bias
Shapes     W, W S, A [K, c]; S, M [c, c]; K and c differ from row to row
Fused      all vectors of a BatchNorm, W' and its transpose in the maps' type for the products that read them
Traffic    small matrices, from the second-level cache
Mapping    fold, backward: a program has BLOCK_M channels of K. input terms: a tile of M, over all pairs of an input
Order      sums over channels in order, pairs in the order of the table: repeats bitwise
Limits     none. Without batch statistics mean and variance are the running ones, and W S, q and e are zero
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, pointer, real, size
from .products import channel, pixels_product, plain, rows_product


@triton.jit(do_not_specialize=["rows"])
def fold_kernel(
    # rows: W, gamma, beta, mu, S, running mean and variance; out: W S, mean, unbiased variance, r, gamma*r, W', b',
    # factor*W'^T; K, c, P, eps, factor, whether statistics are the batch's
    table_ptr,
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
    w_ptr = pointer(row, 1, ACC)
    K, C, P = channels(row, 16, VECTOR), channels(row, 17, VECTOR), size(row, 18)
    first = program * BLOCK_M
    n = tl.minimum(K - first, BLOCK_M)
    m = tl.arange(0, BLOCK_M)
    k = first + m
    w_ptr += first.to(tl.int64) * C
    if size(row, 21) != 0:
        with_input_ptr = pointer(row, 8, ACC) + first.to(tl.int64) * C
        mean = tl.zeros((BLOCK_M,), ACC)
        variance = tl.zeros((BLOCK_M,), ACC)
        for c0 in range(0, C, BLOCK_N):
            c = c0 + tl.arange(0, BLOCK_N)
            at = m[:, None] * C + c[None, :]
            mask = (m < n)[:, None] & (c < C)[None, :]
            acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
            # S is its own transpose; a statistic: never in TF32
            acc = rows_product(plain, (w_ptr,), pointer(row, 5, ACC), acc, n, c, C, C, BLOCK_K, "ieee")
            w = tl.load(w_ptr + at, mask=mask, other=0.0)
            mean += tl.sum(w * channel(pointer(row, 4, ACC), c, C)[None, :], 1)
            variance += tl.sum(w * acc, 1)
            tl.store(with_input_ptr + at, acc, mask=mask)
        # rounding may leave the variance of a constant below zero; what overflowed is infinite, not inf - inf. NaN in
        # the input is in the mean as well
        variance = tl.where(variance != variance, float("inf"), tl.where(variance < 0, 0.0, variance))
        tl.store(pointer(row, 9, ACC) + k, mean, mask=m < n)
        unbiased = variance * (P.to(ACC) / tl.maximum(P - 1, 1).to(ACC))
        tl.store(pointer(row, 10, ACC) + k, unbiased, mask=m < n)
    else:
        mean = channel(pointer(row, 6, ACC), k, K)
        variance = channel(pointer(row, 7, ACC), k, K)
        tl.store(pointer(row, 9, ACC) + k, mean, mask=m < n)
    invstd = tl.rsqrt(variance + real(row, 19, ACC))
    scale = channel(pointer(row, 2, ACC), k, K) * invstd
    tl.store(pointer(row, 11, ACC) + k, invstd, mask=m < n)
    tl.store(pointer(row, 12, ACC) + k, scale, mask=m < n)
    tl.store(pointer(row, 14, ACC) + k, channel(pointer(row, 3, ACC), k, K) - scale * mean, mask=m < n)
    folded_ptr = pointer(row, 13, MAP) + first.to(tl.int64) * C
    back_ptr = pointer(row, 15, MAP) + first
    back_scale = scale * real(row, 20, ACC)
    for c0 in range(0, C, BLOCK_N):
        c = c0 + tl.arange(0, BLOCK_N)
        at = m[:, None] * C + c[None, :]
        mask = (m < n)[:, None] & (c < C)[None, :]
        w = tl.load(w_ptr + at, mask=mask, other=0.0)
        tl.store(folded_ptr + at, cast(scale[:, None] * w, MAP), mask=mask)
        tl.store(back_ptr + c[None, :] * K + m[:, None], cast(back_scale[:, None] * w, MAP), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def linear_norm_backward_kernel(
    # rows: A (becomes dW), s, W, W S, mu, mean, r, gamma*r; out: d_gamma, -q*factor/P, e*factor/P; K, c, P, factor,
    # whether statistics are the batch's
    table_ptr,
    rows,
    ROW: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    K, C = channels(row, 12, VECTOR), channels(row, 13, VECTOR)
    k = program * BLOCK_M + tl.arange(0, BLOCK_M)
    a_ptr, w_ptr = pointer(row, 1, ACC), pointer(row, 3, ACC)
    rowdot = tl.zeros((BLOCK_M,), ACC)
    for c0 in range(0, C, BLOCK_N):
        c = c0 + tl.arange(0, BLOCK_N)
        at = k[:, None].to(tl.int64) * C + c[None, :]
        mask = (k < K)[:, None] & (c < C)[None, :]
        rowdot += tl.sum(tl.load(a_ptr + at, mask=mask, other=0.0) * tl.load(w_ptr + at, mask=mask, other=0.0), 1)
    s, mean = channel(pointer(row, 2, ACC), k, K), channel(pointer(row, 6, ACC), k, K)
    invstd, scale = channel(pointer(row, 7, ACC), k, K), channel(pointer(row, 8, ACC), k, K)
    d_gamma = invstd * (rowdot - s * mean)
    tl.store(pointer(row, 9, ACC) + k, d_gamma, mask=k < K)
    slope = invstd * d_gamma
    from_batch = size(row, 16) != 0
    if from_batch:
        q = scale * slope
        factor = real(row, 15, ACC) / size(row, 14).to(ACC)
        tl.store(pointer(row, 10, ACC) + k, -factor * q, mask=k < K)
        tl.store(pointer(row, 11, ACC) + k, factor * (q * mean - scale * s), mask=k < K)
    for c0 in range(0, C, BLOCK_N):
        c = c0 + tl.arange(0, BLOCK_N)
        at = k[:, None].to(tl.int64) * C + c[None, :]
        mask = (k < K)[:, None] & (c < C)[None, :]
        a = tl.load(a_ptr + at, mask=mask, other=0.0)
        if from_batch:
            a -= s[:, None] * channel(pointer(row, 5, ACC), c, C)[None, :]
            a -= slope[:, None] * tl.load(pointer(row, 4, ACC) + at, mask=mask, other=0.0)
        tl.store(a_ptr + at, scale[:, None] * a, mask=mask)


@triton.jit
def _scaled_rows(source, p, c, mask, C):
    """A weight ``[K, C]`` with its rows ``p`` multiplied: ``(w_ptr, q_ptr, K)``."""
    w_ptr, q_ptr, K = source
    return tl.load(w_ptr + p * C + c, mask=mask, other=0.0) * channel(q_ptr, p, K)


@triton.jit(do_not_specialize=["rows"])
def input_terms_kernel(
    table_ptr,  # rows: out: M, bias; c, number of pairs, where they are
    rows,
    ROW: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    C = channels(row, 3, VECTOR)
    tiles_n = tl.cdiv(C, BLOCK_N)
    i = program // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    j = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    bias = tl.zeros((BLOCK_M,), ACC)
    # a pair: W, q and e as linear_norm_backward_kernel leaves them, K
    pair = table_ptr + tl.load(row + 5)
    for _ in range(size(row, 4)):
        w_ptr, K = pointer(pair, 0, ACC), channels(pair, 3, VECTOR)
        left = (w_ptr, pointer(pair, 1, ACC), K)
        acc, _unused = pixels_product(_scaled_rows, left, plain, (w_ptr,), acc, K, i, j, C, C, BLOCK_K, "ieee", False)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            mask = (k < K)[None, :] & (i < C)[:, None]
            w = tl.load(w_ptr + k[None, :] * C + i[:, None], mask=mask, other=0.0)
            bias += tl.sum(w * channel(pointer(pair, 2, ACC), k, K)[None, :], 1)
        pair += 4
    tl.store(pointer(row, 1, ACC) + i[:, None] * C + j[None, :], acc, mask=(i < C)[:, None] & (j < C)[None, :])
    if program % tiles_n == 0:
        tl.store(pointer(row, 2, ACC) + i, bias, mask=i < C)
