"""What is left of a BatchNorm when its neighbours do the rest: statistics over pixels, and the gradient of its input.

Reference  PlainStages.conv3x3 (mean, variance), PlainStages.conv3x3_backward (d_z)
Math       mean = 1/P sum_p x[p], variance = 1/P sum_p (x[p] - mean)^2;  d_z = (a*d + b*z + c) * factor
Shapes     x, z, d [P, C]; mean, variance, a, b, c [C]
Fused      the normalised map is never written; d_z takes the place of d
Traffic    statistics read x once; d_z reads two maps and writes one. Bound by bandwidth
Mapping    statistics: grid [runs, ceil(C / BLOCK_C)], a program adds up a run of consecutive pixels for BLOCK_C
           channels, then one program merges the runs of some channels. d_z: a program has BLOCK_P pixels
Order      a run's sums go to its own slot, slots are merged in a fixed order: repeats bitwise
Accuracy   sums are of differences from the mean of the map's first pixels, runs are merged by Chan's formula, and
           their means are kept as differences too: nothing is lost where the mean is many standard deviations
Limits     P < 2^31. 128-bit accesses where C is a multiple of a vector
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .narrow import narrow
from .products import channel


@triton.jit(do_not_specialize=["P", "pixels_per_run"])
def moments_kernel(
    x_ptr,  # [P, C]
    anchor_ptr,  # [C], out
    shift_ptr,  # [runs, C], out: a run's mean less the anchor
    m2_ptr,  # [runs, C], out: sums of squared differences from the run's mean
    P,
    pixels_per_run,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    run = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_P)[:, None]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    # the first pixels' mean, the same for all runs
    first = tl.load(x_ptr + row * C + c[None, :], mask=(row < P) & (c < C)[None, :], other=0.0).to(WIDE)
    anchor = tl.sum(first, 0) / tl.minimum(P, BLOCK_P).to(WIDE)
    if run == 0:
        tl.store(anchor_ptr + c, anchor, mask=c < C)

    begin = run * pixels_per_run
    n = tl.minimum(P - begin, pixels_per_run).to(tl.int32)
    x_ptr += begin * C
    sums = tl.zeros((BLOCK_P, BLOCK_C), WIDE)
    squares = tl.zeros((BLOCK_P, BLOCK_C), WIDE)
    for p0 in tl.range(0, n, BLOCK_P, num_stages=STAGES):
        mask = (p0 + row < n) & (c < C)[None, :]
        x = tl.load(x_ptr + (p0 + row) * C + c[None, :], mask=mask, other=0.0).to(WIDE)
        x = tl.where(mask, x - anchor[None, :], 0.0)
        sums += x
        squares += x * x
    total = tl.sum(sums, 0)
    shift = total / n.to(WIDE)
    tl.store(shift_ptr + run * C + c, shift, mask=c < C)
    tl.store(m2_ptr + run * C + c, tl.sum(squares, 0) - total * shift, mask=c < C)


@triton.jit(do_not_specialize=["P", "pixels_per_run", "runs"])
def merge_moments_kernel(
    anchor_ptr,  # [C]
    shift_ptr,  # [runs, C]
    m2_ptr,  # [runs, C]
    out_ptr,  # [2, C], out: mean, variance
    P,
    pixels_per_run,
    runs,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.arange(0, BLOCK_R)[:, None]
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_R, BLOCK_C), WIDE)
    for r0 in range(0, runs, BLOCK_R):
        r = r0 + row
        mask = (r < runs) & (c < C)[None, :]
        n = tl.minimum(P - r.to(tl.int64) * pixels_per_run, pixels_per_run).to(WIDE)
        acc += tl.where(mask, n * tl.load(shift_ptr + r * C + c[None, :], mask=mask, other=0.0), 0.0)
    shift_of_all = tl.sum(acc, 0) / P.to(WIDE)
    acc = tl.zeros((BLOCK_R, BLOCK_C), WIDE)
    for r0 in range(0, runs, BLOCK_R):
        r = r0 + row
        mask = (r < runs) & (c < C)[None, :]
        n = tl.minimum(P - r.to(tl.int64) * pixels_per_run, pixels_per_run).to(WIDE)
        shift = tl.load(shift_ptr + r * C + c[None, :], mask=mask, other=0.0) - shift_of_all[None, :]
        m2 = tl.load(m2_ptr + r * C + c[None, :], mask=mask, other=0.0)
        acc += tl.where(mask, m2 + n * shift * shift, 0.0)
    mean = channel(anchor_ptr, c, C) + shift_of_all
    variance = tl.sum(acc, 0) / P.to(WIDE)
    # squares of finite numbers have overflowed, and the rest is inf - inf; NaN in a channel is in its mean as well
    variance = tl.where((variance != variance) & (tl.abs(mean) < float("inf")), float("inf"), variance)
    tl.store(out_ptr + c, mean, mask=c < C)
    tl.store(out_ptr + C + c, variance, mask=c < C)


@triton.jit(do_not_specialize=["P", "factor"])
def d_z_kernel(
    d_ptr,  # [P, C], in and out
    z_ptr,  # [P, C]
    a_ptr,  # [C], as b and c
    b_ptr,
    c_ptr,
    P,
    factor,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64) * BLOCK_P
    row = tl.arange(0, BLOCK_P)[:, None]
    k = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < P - begin) & (k < C)[None, :]
    d_ptr += begin * C
    z_ptr += begin * C
    d = tl.load(d_ptr + row * C + k[None, :], mask=mask, other=0.0).to(WIDE)
    z = tl.load(z_ptr + row * C + k[None, :], mask=mask, other=0.0).to(WIDE)
    a, b, c = channel(a_ptr, k, C), channel(b_ptr, k, C), channel(c_ptr, k, C)
    d_z = (a[None, :] * d + b[None, :] * z + c[None, :]) * factor
    tl.store(d_ptr + row * C + k[None, :], narrow(d_z, d_ptr.dtype.element_ty), mask=mask)
