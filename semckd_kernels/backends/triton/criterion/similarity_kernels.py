"""Similarities of all layers, and the gradient of the student's maps through them and from their resolutions.

Reference  stages.attention.similarity; pooling.unpool_add_ and (d_G + d_G^T) @ rows
Math       G[r, s] = sum_n x[r, n] * x[s, n];  d_x[r, n] = sum_s (d_G[r, s] + d_G[s, r]) * x[s, n]
           + sum over resolutions of factor * unpool(d)[r, n]
Shapes     x [B, N] in a layer's own type, N = pixels * channels; G, d_G [B, B] and d [B, h, w, C] in the
           accumulation type
Fused      d_G + d_G^T, the sum over resolutions and the layout of the student's map: d_x is written once, where and in
           the type that the map's gradient is wanted
Traffic    similarity reads x once for each BLOCK_B samples and writes splits * B^2; the gradient reads x and all d, and
           writes d_x. Bandwidth bounds 16-bit types; products of fp32 without TF32 are arithmetic: 2*B^2*N each
Mapping    similarity: a program has one tile of G on or below the diagonal, for one split of N, tiles fastest. The sum
           of splits fills in what lies above: BLOCK_I elements a program. gradient: BLOCK_M samples x (BLOCK_P pixels
           x BLOCK_C channels), samples fastest, so that programs that read the same columns run together
Order      a split's sum goes to its own slot, slots are added in order: repeats bitwise
Limits     B <= 46340; N < 2^31. 128-bit accesses where channels are a multiple of a vector; stores of a map [B, C, P]
           where its pixels are
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, pointer, real, size
from .map_kernels import add_unpooled
from .products import dot

# columns of similarity_kernel's table
_X = tl.constexpr(1)
_SLOTS = tl.constexpr(2)
_BATCH = tl.constexpr(3)
_NUMEL = tl.constexpr(4)
_RUN = tl.constexpr(5)  # terms a split


@triton.jit(do_not_specialize=["rows"])
def similarity_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TYPE: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    N = channels(row, _NUMEL, VECTOR)
    run = channels(row, _RUN, BLOCK_K)
    blocks = tl.cdiv(B, BLOCK_B)
    tiles = blocks * (blocks + 1) // 2
    split = program // tiles
    tile = program % tiles
    # tiles on and below the diagonal, row by row
    i = 0
    while (i + 1) * (i + 2) // 2 <= tile:
        i += 1
    j = tile - i * (i + 1) // 2
    r = i * BLOCK_B + tl.arange(0, BLOCK_B)
    s = j * BLOCK_B + tl.arange(0, BLOCK_B)
    begin = split.to(tl.int64) * run
    n = tl.multiple_of(tl.minimum(N - begin, run).to(tl.int32), VECTOR)
    x_ptr = pointer(row, _X, TYPE) + begin
    left = x_ptr + r[:, None].to(tl.int64) * N
    right = x_ptr + s[None, :].to(tl.int64) * N
    acc = tl.zeros((BLOCK_B, BLOCK_B), ACC)
    for k0 in tl.range(0, n, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = tl.load(left + k[None, :], mask=(r < B)[:, None] & (k < n)[None, :], other=0.0)
        b = tl.load(right + k[:, None], mask=(s < B)[None, :] & (k < n)[:, None], other=0.0)
        acc = dot(a, b, acc, PRECISION)
    # whole tiles, one behind the other: their addresses cost no registers
    at = tl.arange(0, BLOCK_B)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    tl.store(pointer(row, _SLOTS, ACC) + program.to(tl.int64) * BLOCK_B * BLOCK_B + at, acc)


# columns of sum_splits_kernel's table; _BATCH is that of similarity_kernel
_INTO = tl.constexpr(1)
_LAYER = tl.constexpr(4)
_SPLITS = tl.constexpr(5)


@triton.jit(do_not_specialize=["rows"])
def sum_splits_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    splits = size(row, _SPLITS)
    blocks = tl.cdiv(B, BLOCK_B)
    i = program * BLOCK_I + tl.arange(0, BLOCK_I)
    r = i // B
    s = i % B
    # what lies in a tile above the diagonal is its mirror image
    is_above = s // BLOCK_B > r // BLOCK_B
    y = tl.where(is_above, s, r)
    x = tl.where(is_above, r, s)
    tile = y // BLOCK_B * (y // BLOCK_B + 1) // 2 + x // BLOCK_B
    slots_ptr = pointer(row, _SLOTS, FROM) + (tile * BLOCK_B + y % BLOCK_B) * BLOCK_B + x % BLOCK_B
    stride = blocks * (blocks + 1) // 2 * (BLOCK_B * BLOCK_B)
    acc = tl.zeros((BLOCK_R, BLOCK_I), FROM)
    for k0 in range(0, splits, BLOCK_R):
        k = k0 + tl.arange(0, BLOCK_R)[:, None]
        mask = (k < splits) & (i < B * B)[None, :]
        acc += tl.load(slots_ptr[None, :] + k.to(tl.int64) * stride, mask=mask, other=0.0)
    out_ptr = pointer(row, _INTO, TO) + tl.load(row + _LAYER) * B * B
    tl.store(out_ptr + i, tl.sum(acc, 0).to(TO), mask=i < B * B)


# columns of map_gradient_kernel's table; _X and _BATCH are those of similarity_kernel, _LAYER of sum_splits_kernel
_OUT = tl.constexpr(2)
_D_SIMILARITY = tl.constexpr(5)
_HEIGHT = tl.constexpr(6)
_WIDTH = tl.constexpr(7)
_CHANNELS = tl.constexpr(8)
_TRANSPOSED = tl.constexpr(9)  # out is [B, C, P]
_FAST_P = tl.constexpr(10)  # then its pixels are a multiple of a vector
_PARTS = tl.constexpr(11)
_FIRST_PART = tl.constexpr(12)  # where parts begin, behind the rows
# columns of a part
_PART_WORDS = tl.constexpr(4)
_PART_D = tl.constexpr(0)
_PART_HEIGHT = tl.constexpr(1)
_PART_WIDTH = tl.constexpr(2)
_PART_FACTOR = tl.constexpr(3)


@triton.jit
def _store_transposed(row, acc, m, B, p0, c0, TO: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile of samples and (pixels, channels) to a map ``[B, C, P]``."""
    M: tl.constexpr = acc.shape[0]
    BLOCK_C: tl.constexpr = acc.shape[1] // BLOCK_P
    P = tl.multiple_of(size(row, _HEIGHT) * size(row, _WIDTH), VECTOR)
    C = size(row, _CHANNELS)
    col = tl.arange(0, BLOCK_C * BLOCK_P)
    p = p0 + col % BLOCK_P
    c = c0 + col // BLOCK_P
    acc = tl.permute(tl.reshape(acc, (M, BLOCK_P, BLOCK_C)), (0, 2, 1))
    out = pointer(row, _OUT, TO) + m[:, None].to(tl.int64) * C * P
    mask = (m < B)[:, None] & ((p < P) & (c < C))[None, :]
    tl.store(out + (c * P + p)[None, :], cast(tl.reshape(acc, (M, BLOCK_C * BLOCK_P)), TO), mask=mask)


@triton.jit
def _symmetric_product(
    row, at, columns, m, B, N, TYPE: tl.constexpr, ACC: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """``(d_G + d_G^T) @ x`` of samples m, at the elements ``at`` of a sample."""
    d_ptr = pointer(row, _D_SIMILARITY, ACC) + tl.load(row + _LAYER) * B * B
    x_ptr = pointer(row, _X, TYPE)
    acc = tl.zeros((m.shape[0], at.shape[0]), ACC)
    for k0 in tl.range(0, B, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        mask = (m < B)[:, None] & (k < B)[None, :]
        d = tl.load(d_ptr + m[:, None] * B + k[None, :], mask=mask, other=0.0)
        d += tl.load(d_ptr + k[None, :] * B + m[:, None], mask=mask, other=0.0)
        x = tl.load(
            x_ptr + k[:, None].to(tl.int64) * N + at[None, :], mask=(k < B)[:, None] & columns[None, :], other=0.0
        )
        acc = dot(d, x.to(ACC), acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["rows"])
def map_gradient_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TYPE: tl.constexpr,
    TO: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    H = size(row, _HEIGHT)
    W = size(row, _WIDTH)
    C = channels(row, _CHANNELS, VECTOR)
    blocks = tl.cdiv(B, BLOCK_M)
    tiles_c = tl.cdiv(C, BLOCK_C)
    m = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    p0 = program // blocks // tiles_c * BLOCK_P
    c0 = program // blocks % tiles_c * BLOCK_C
    col = tl.arange(0, BLOCK_P * BLOCK_C)
    p = p0 + col // BLOCK_C
    c = c0 + col % BLOCK_C
    columns = (p < H * W) & (c < C)
    at = p * C + c
    N = H * W * C
    acc = _symmetric_product(row, at, columns, m, B, N, TYPE, ACC, BLOCK_K, PRECISION)
    mask = (m < B)[:, None] & columns[None, :]
    sample = m.to(tl.int64)
    for q in range(size(row, _PARTS)):
        part = table_ptr + tl.load(row + _FIRST_PART) + q * _PART_WORDS
        factor = real(part, _PART_FACTOR, ACC)
        h = size(part, _PART_HEIGHT)
        w = size(part, _PART_WIDTH)
        acc = add_unpooled(acc, pointer(part, _PART_D, ACC), factor, sample, p // W, p % W, c, mask, H, W, h, w, C)
    if size(row, _TRANSPOSED) == 0:
        out = pointer(row, _OUT, TO) + sample[:, None] * N
        tl.store(out + at[None, :], cast(acc, TO), mask=mask)
    elif size(row, _FAST_P) != 0:
        _store_transposed(row, acc, m, B, p0, c0, TO, VECTOR, BLOCK_P)
    else:
        _store_transposed(row, acc, m, B, p0, c0, TO, 1, BLOCK_P)
