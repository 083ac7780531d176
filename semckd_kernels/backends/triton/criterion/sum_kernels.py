"""Sums of what other programs left in slots of their own, in a fixed order, for any number of tensors.

Reference  slots.sum(0) / divisor
Math       out[i] = sum_r slots[r, i] / divisor
Shapes     slots [total, inner] -> out [inner], accumulation type; total and inner differ from row to row
Fused      none
Traffic    reads slots once: bound by bandwidth, or by latency where there are few
Mapping    a program adds a group of slots for BLOCK_I columns. Where there are several groups, their sums go to slots
           again, which the program that draws the last ticket of these columns adds
Order      every BLOCK_R-th slot by one thread's registers, those by a tree, groups likewise: depends on sizes alone,
           whoever draws the last ticket; repeats bitwise
Limits     total < 2^31
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..rows import channels, find_row, is_last, pointer, real, size


@triton.jit
def _sum(slots_ptr, n, i, inner, ACC: tl.constexpr, BLOCK_R: tl.constexpr):
    acc = tl.zeros((BLOCK_R, i.shape[0]), ACC)
    for r0 in range(0, n, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)[:, None]
        mask = (r < n) & (i < inner)[None, :]
        # groups' sums are other programs': past the first-level cache, which does not see their writes
        at = r.to(tl.int64) * inner + i[None, :]
        acc += tl.load(slots_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(acc, 0)


@triton.jit(do_not_specialize=["rows"])
def sum_slots_kernel(
    table_ptr,  # rows: slots, out, slots of groups; total, inner, slots a group, groups, tickets, divisor
    rows,
    ROW: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    inner = channels(row, 5, VECTOR)
    tiles = tl.cdiv(inner, BLOCK_I)
    tile = program % tiles
    i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
    group, groups = program // tiles, size(row, 7)
    first = group.to(tl.int64) * size(row, 6)
    n = tl.minimum(size(row, 4) - first, size(row, 6)).to(tl.int32)
    acc = _sum(pointer(row, 1, ACC) + first * inner, n, i, inner, ACC, BLOCK_R)
    out_ptr, divisor = pointer(row, 2, ACC), real(row, 9, ACC)
    if groups == 1:
        tl.store(out_ptr + i, acc / divisor, mask=i < inner)
    else:
        groups_ptr = pointer(row, 3, ACC)
        tl.store(groups_ptr + group.to(tl.int64) * inner + i, acc, mask=i < inner)
        if is_last(table_ptr + tl.load(row + 8) + tile, groups):
            tl.store(out_ptr + i, _sum(groups_ptr, groups, i, inner, ACC, BLOCK_R) / divisor, mask=i < inner)
