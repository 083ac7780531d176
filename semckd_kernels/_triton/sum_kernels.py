"""Sums of what other programs left in slots of their own, in a fixed order.

Reference  x.view(-1, runs, inner).sum(1) / divisor
Math       out[o, i] = sum_r slots[o * group + r, i] / divisor, r < group and o * group + r < total
Shapes     slots [total, inner] -> out [ceil(total / group), inner], wide
Fused      none
Traffic    reads slots once: bound by bandwidth, or by latency where there are few
Mapping    grid [groups * ceil(inner / BLOCK_I)], one program = one group's runs of BLOCK_I columns
Order      every BLOCK_R-th run by one thread's registers, those by a tree: depends on sizes alone, repeats bitwise
Limits     total < 2^31
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total", "group", "divisor"])
def sum_slots_kernel(
    slots_ptr,  # [total, inner]
    out_ptr,  # [groups, inner]
    total,
    group,
    divisor,
    inner,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    tiles = tl.cdiv(inner, BLOCK_I)
    o = tl.program_id(0) // tiles
    i = tl.program_id(0) % tiles * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    first = o.to(tl.int64) * group
    runs = tl.minimum(total - first, group).to(tl.int32)
    slots_ptr += first * inner
    acc = tl.zeros((BLOCK_R, BLOCK_I), WIDE)
    for r0 in range(0, runs, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)[:, None]
        acc += tl.load(slots_ptr + r.to(tl.int64) * inner + i, mask=(r < runs) & (i < inner), other=0.0)
    out = tl.sum(acc, 0, keep_dims=True) / tl.cast(divisor, WIDE)
    tl.store(out_ptr + o.to(tl.int64) * inner + i, out, mask=i < inner)
