"""The two matrix products of the criterion's kernels: device functions.

``rows_product`` sums over channels, its rows are pixels: the 1x1 convolutions and their way back to a map.
``pixels_product`` sums over pixels: gradients of weights, and the covariance.

An *operand* is a device function ``(source, p, c, mask, C)`` that gives the elements at pixels ``p`` and channels ``c``
of a map ``[P, C]``, computed from whatever the tuple ``source`` holds: so a product's input need not exist in memory.
``p`` and ``c`` are a column and a row, or the other way round where the product wants it transposed. What is loaded
where ``mask`` is false is 0; an operand may leave there any finite number as long as the other operand is 0.

Numbers of channels are values, not constants: one compiled kernel serves all layers. What is known of them is that they
are multiples of a vector (``rows.channels``), which makes accesses 128 bits wide.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plain(source, p, c, mask, C):
    """A map as it is: ``(x_ptr,)``."""
    return tl.load(source[0] + p * C + c, mask=mask, other=0.0)


@triton.jit
def masked(source, p, c, mask, C):
    """A gradient behind a ReLU: ``(d_ptr, h_ptr)``. Where h is NaN the gradient stays."""
    d = tl.load(source[0] + p * C + c, mask=mask, other=0.0)
    h = tl.load(source[1] + p * C + c, mask=mask, other=0.0)
    return tl.where(h <= 0, 0.0, d)


@triton.jit
def relu(x):
    """Keeps NaN, which a maximum would turn into 0."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def channel(ptr, c, C):
    """A channel's constant."""
    return tl.load(ptr + c, mask=c < C, other=0.0)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    if acc.dtype.is_fp64():
        # for checking gradients only, slow. Triton 3.6 cannot compile tl.dot in fp64 for sm_100 and gfx942
        acc += tl.sum(a.to(acc.dtype)[:, :, None] * b.to(acc.dtype)[None, :, :], 1)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def rows_product(
    OPERAND: tl.constexpr,
    source,
    w_ptr,  # [N, K], its type is the product's
    acc,  # [BLOCK_M, BLOCK_N], added to
    n,  # rows that exist
    col,  # [BLOCK_N]
    K,
    N,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc`` + operand @ w^T, for the rows from the source's first on."""
    row = tl.arange(0, acc.shape[0])[:, None]
    for k0 in tl.range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = OPERAND(source, row, k[None, :], (row < n) & (k < K)[None, :], K)
        w = tl.load(w_ptr + col[None, :] * K + k[:, None], mask=(col < N)[None, :] & (k < K)[:, None], other=0.0)
        acc = dot(a.to(w.dtype), w, acc, PRECISION)
    return acc


@triton.jit
def pixels_product(
    A: tl.constexpr,
    a,
    B: tl.constexpr,
    b,
    acc,  # [BLOCK_M, BLOCK_N], added to
    n,  # pixels of this split
    i,  # [BLOCK_M], channels of a
    j,  # [BLOCK_N], channels of b
    M,
    N,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM_A: tl.constexpr,
):
    """``acc`` + a^T @ b and, with SUM_A, a's sums over pixels; from the sources' first pixel on."""
    total = tl.zeros((i.shape[0],), acc.dtype)
    for p0 in tl.range(0, n, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        left = A(a, p[None, :], i[:, None], (p < n)[None, :] & (i < M)[:, None], M)
        right = B(b, p[:, None], j[None, :], (p < n)[:, None] & (j < N)[None, :], N)
        acc = dot(left, right, acc, PRECISION)
        if SUM_A:
            total += tl.sum(left.to(acc.dtype), 1)
    return acc, total


@triton.jit
def row_tile(program, P, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's tile of a map ``[P, N]``, channel tiles fastest, so that programs with the same pixels run together.

    Returns its first pixel (int64), how many of its pixels exist, and its channels.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    begin = (program // tiles_n).to(tl.int64) * BLOCK_M
    n = tl.minimum(P - begin, BLOCK_M).to(tl.int32)
    return begin, n, program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def split_tile(program, P, pixels_per_split, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's share of a product over pixels ``[M, N]``: all tiles of a split, column tiles fastest.

    Returns its split, the split's first pixel (both int64) and number of pixels, and the tile's channels i and j.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    tile = program % tiles
    split = (program // tiles).to(tl.int64)
    i = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = split * pixels_per_split
    n = tl.minimum(P - begin, pixels_per_split).to(tl.int32)
    return split, begin, n, i, j
