"""Copies of any number of small tensors into another type and layout: weights on their way in, gradients on theirs out.

Reference  out.copy_(x * factor)
Math       out[o, j, i] = factor * x[o, j, i]
Shapes     [O, J, I], any strides on both sides; they differ from row to row
Fused      all tensors of a type on either side
Traffic    reads and writes once
Mapping    a program has a tile BLOCK_J x BLOCK_I for one o
Order      no sums
Limits     O, J, I < 2^31. Where i is contiguous on both sides and rows are aligned accesses are 128 bits; where x is
           contiguous along j and out along i both are coalesced, the tile changes layout on its way
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import find_row, pointer, real, size

# elements whose multiples are 128 bits in every type
ALIGNED = tl.constexpr(8)


@triton.jit(do_not_specialize=["rows"])
def convert_kernel(
    # rows: x, out; J, I, strides of o, j, i in x and in out, kind: 0 along i and aligned, 1 x along j and out along i,
    # 2 any; factor
    table_ptr,
    rows,
    ROW: tl.constexpr,
    SOURCE: tl.constexpr,
    OUT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    count_j, count_i = size(row, 3), size(row, 4)
    tiles_i, tiles_j = tl.cdiv(count_i, BLOCK_I), tl.cdiv(count_j, BLOCK_J)
    o = (program // (tiles_i * tiles_j)).to(tl.int64)
    j = (program // tiles_i % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J))[:, None]
    i = (program % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I))[None, :]
    x_ptr = pointer(row, 1, SOURCE) + o * tl.load(row + 5)
    out_ptr = pointer(row, 2, OUT) + o * tl.load(row + 8)
    x_j, x_i, out_j, out_i = tl.load(row + 6), tl.load(row + 7), tl.load(row + 9), tl.load(row + 10)
    factor = real(row, 12, ACC)
    mask = (j < count_j) & (i < count_i)
    kind = size(row, 11)
    if kind == 0:
        # said by arithmetic: as a hint it would be lost where the compiler finds the same mask above
        mask = (j < count_j) & (i < count_i // ALIGNED * ALIGNED)
        x = tl.load(tl.multiple_of(x_ptr, 16) + j * tl.multiple_of(x_j, ALIGNED) + i, mask=mask, other=0.0)
        y = cast(x.to(ACC) * factor, OUT)
        tl.store(tl.multiple_of(out_ptr, 16) + j * tl.multiple_of(out_j, ALIGNED) + i, y, mask=mask)
    elif kind == 1:
        x = tl.load(x_ptr + j + i * x_i, mask=mask, other=0.0)
        tl.store(out_ptr + j * out_j + i, cast(x.to(ACC) * factor, OUT), mask=mask)
    else:
        x = tl.load(x_ptr + j * x_j + i * x_i, mask=mask, other=0.0)
        tl.store(out_ptr + j * out_j + i * out_i, cast(x.to(ACC) * factor, OUT), mask=mask)
