"""Maps as rows, average-pooled rows, and the way back from pooled rows: of all layers in one launch.

Reference  permute(0, 2, 3, 1), stages.pooling.pool and unpool_add_
Math       rows: out[b, p, c] = x[b, c, p]. pool: out[b, i, j, c] = mean of x[b, y, x, c] over window (i, j), which
           covers rows floor(i*H/h) to ceil((i+1)*H/h) - 1, and columns likewise; unpool: each pixel takes the gradients
           of the windows it lies in, divided by their areas: at most two along each axis, since h <= H
Shapes     rows: x [B, C, P] or [B, P, C] -> [B, P, C];  pool: x [B, H, W, C] -> [B, h, w, C]
Fused      layout and type in one pass; unpooled gradients are never written (``similarity_kernels.py`` adds them)
Traffic    rows reads and writes a map once; pool reads the full map and writes the pooled one for each resolution.
           Bound by bandwidth
Mapping    rows: BLOCK_P pixels x BLOCK_C channels of one sample, channels fastest; a tile read along pixels is
           transposed in shared memory. pool: BLOCK_P pixels of the result, of any samples, x BLOCK_C channels
Order      a window's sum goes row by row: repeats bitwise
Limits     below 2^31 pixels a map and 2^31 elements a sample. 128-bit accesses along whichever of pixels and channels
           is a multiple of a vector, decided for each map by rows, for all maps of a launch by pool
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, pointer, size

# columns of rows_kernel's table; FAST_C and FAST_P: channels and pixels are multiples of a vector
_X = tl.constexpr(1)
_OUT = tl.constexpr(2)
_PIXELS = tl.constexpr(3)
_CHANNELS = tl.constexpr(4)
_TRANSPOSED = tl.constexpr(5)
_FAST_P = tl.constexpr(6)
_FAST_C = tl.constexpr(7)

# columns of pool_kernel's table, behind _CHANNELS; the windows are the largest
_HEIGHT = tl.constexpr(5)
_WIDTH = tl.constexpr(6)
_OUT_HEIGHT = tl.constexpr(7)
_OUT_WIDTH = tl.constexpr(8)
_WINDOW_HEIGHT = tl.constexpr(9)
_WINDOW_WIDTH = tl.constexpr(10)


# these load sizes themselves: a divisibility holds for a value wherever it is used, so each variant needs its own
@triton.jit
def _rows_tile(row, COLUMN: tl.constexpr, b, p, c, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    """Pointers to pixels p and channels c of rows ``[B, P, C]``, and the mask of those that exist."""
    P = size(row, _PIXELS)
    C = channels(row, _CHANNELS, VECTOR)
    ptr = pointer(row, COLUMN, TYPE) + b * P * C
    return ptr + p[:, None].to(tl.int64) * C + c[None, :], (p < P)[:, None] & (c < C)[None, :]


@triton.jit
def _load_rows(row, b, p, c, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    ptr, mask = _rows_tile(row, _X, b, p, c, TYPE, VECTOR)
    return tl.load(ptr, mask=mask, other=0.0)


@triton.jit
def _load_columns(row, b, p, c, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    """The same tile of a map ``[B, C, P]``."""
    P = channels(row, _PIXELS, VECTOR)
    C = size(row, _CHANNELS)
    ptr = pointer(row, _X, TYPE) + b * P * C + c[:, None].to(tl.int64) * P + p[None, :]
    return tl.trans(tl.load(ptr, mask=(c < C)[:, None] & (p < P)[None, :], other=0.0))


@triton.jit
def _store_rows(row, x, b, p, c, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    ptr, mask = _rows_tile(row, _OUT, b, p, c, TYPE, VECTOR)
    tl.store(ptr, _cast(x, TYPE), mask=mask)


@triton.jit
def _cast(x, TO: tl.constexpr):
    """As torch does it: to 16 bits by way of fp32."""
    if x.dtype == TO:
        return x
    return cast(x.to(tl.float32), TO) if TO.primitive_bitwidth == 16 else x.to(TO)


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    tiles_c = tl.cdiv(size(row, _CHANNELS), BLOCK_C)
    tiles = tl.cdiv(size(row, _PIXELS), BLOCK_P) * tiles_c
    b = (program // tiles).to(tl.int64)
    p = program % tiles // tiles_c * BLOCK_P + tl.arange(0, BLOCK_P)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    fast_c = size(row, _FAST_C) != 0
    if size(row, _TRANSPOSED) != 0:
        if size(row, _FAST_P) != 0:
            x = _load_columns(row, b, p, c, FROM, VECTOR)
        else:
            x = _load_columns(row, b, p, c, FROM, 1)
    elif fast_c:
        x = _load_rows(row, b, p, c, FROM, VECTOR)
    else:
        x = _load_rows(row, b, p, c, FROM, 1)
    if fast_c:
        _store_rows(row, x, b, p, c, TO, VECTOR)
    else:
        _store_rows(row, x, b, p, c, TO, 1)


@triton.jit
def window(i, N, n):
    """Where window i of n over N pixels begins, and where it ends."""
    return i * N // n, ((i + 1) * N + n - 1) // n


@triton.jit(do_not_specialize=["rows"])
def pool_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TYPE: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    P = size(row, _PIXELS)  # of the result, of all samples
    C = channels(row, _CHANNELS, VECTOR)
    H = size(row, _HEIGHT)
    W = size(row, _WIDTH)
    h = size(row, _OUT_HEIGHT)
    w = size(row, _OUT_WIDTH)
    tiles_c = tl.cdiv(C, BLOCK_C)
    begin = program // tiles_c * BLOCK_P
    p = begin + tl.arange(0, BLOCK_P)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    top, bottom = window(p // w % h, H, h)
    left, right = window(p % w, W, w)
    corner = ((p // (h * w)).to(tl.int64) * H + top) * W + left
    source = pointer(row, _X, TYPE) + corner[:, None] * C + c[None, :]
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    across = size(row, _WINDOW_WIDTH)
    for k in tl.range(0, size(row, _WINDOW_HEIGHT) * across, num_stages=STAGES):
        y = k // across
        x = k % across
        inside = (p < P) & (top + y < bottom) & (left + x < right)
        mask = inside[:, None] & (c < C)[None, :]
        acc += tl.load(source + (y * W + x) * C, mask=mask, other=0.0).to(ACC)
    area = ((bottom - top) * (right - left)).to(ACC)
    out = pointer(row, _OUT, TYPE) + begin.to(tl.int64) * C
    at = tl.arange(0, BLOCK_P)[:, None] * C + c[None, :]
    tl.store(out + at, cast(acc / area[:, None], TYPE), mask=(p < P)[:, None] & (c < C)[None, :])


@triton.jit
def add_unpooled(acc, d_x_ptr, factor, m, y, x, c, mask, H, W, h, w, C):
    """Adds ``factor`` times the gradient of a map ``[B, H, W, C]`` from that of its pooled one ``[B, h, w, C]``.

    Args:
        acc: ``[M, N]``, samples m, and pixels (y, x) and channels c that go with columns.
        mask: samples and columns that exist.
    """
    first_i = y * h // H
    first_j = x * w // W
    end_i = ((y + 1) * h + H - 1) // H
    end_j = ((x + 1) * w + W - 1) // W
    d_x_ptr += m[:, None] * (h * w * C)
    # where sizes divide, a pixel lies in one window
    for a in range(tl.where(H % h == 0, 1, 2)):
        i = first_i + a
        top, bottom = window(i, H, h)
        for b in range(tl.where(W % w == 0, 1, 2)):
            j = first_j + b
            left, right = window(j, W, w)
            inside = mask & ((i < end_i) & (j < end_j))[None, :]
            d = tl.load(d_x_ptr + ((i * w + j) * C + c)[None, :], mask=inside, other=0.0)
            acc += d * (factor / ((bottom - top) * (right - left)).to(acc.dtype))[None, :]
    return acc
