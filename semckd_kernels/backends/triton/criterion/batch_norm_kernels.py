"""What is left of a BatchNorm when its neighbours do the rest: statistics over pixels, and the gradient of its input.

Reference  PlainStages.moments (mean), PlainStages.conv3x3 (mean, variance), BatchNorm.of,
           BatchNorm.backward_coefficients, PlainStages.conv3x3_backward (d_z)
Math       mean = 1/P sum_p x[p], variance = 1/P sum_p (x[p] - mean)^2, r = 1/sqrt(variance + eps), scale = gamma r
           d_gamma = r sum_dz, b = -scale r d_gamma / P, c = -scale sum_d / P - b mean
           d_z = (scale d + b z + c) factor
Shapes     x, z, d [P, C], vectors [C]; P and C differ from row to row
Fused      the normalised map is never written; d_z takes the place of d; all vectors between the sums and the maps
Traffic    statistics read x once; d_z reads two maps and writes one. Bound by bandwidth
Mapping    statistics: a program adds up a run of consecutive pixels for BLOCK_C channels; the one that draws the last
           ticket of these channels merges their runs and finishes the BatchNorm. d_z: a program has BLOCK_P pixels
Order      a run's sums go to its own slot, slots are merged in a fixed order, whoever draws the last ticket: repeats
           bitwise
Accuracy   sums are of differences from the mean of the map's first pixels, runs are merged by Chan's formula, and
           their means are kept as differences too: nothing is lost where the mean is many standard deviations
Limits     P < 2^31. 128-bit accesses where channels are multiples of VECTOR
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast
from ..rows import channels, find_row, is_last, pointer, real, size
from .products import channel


@triton.jit
def _add_run(row, run, c, C, MAP: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr):
    """A run's mean less the anchor, and its sum of squared differences from its mean, to their slots; the anchor."""
    x_ptr = pointer(row, 1, MAP)
    P, pixels_per_run = size(row, 6), size(row, 7)
    p = tl.arange(0, BLOCK_P)[:, None]
    # the first pixels' mean, the same for all runs
    first = tl.load(x_ptr + p * C + c[None, :], mask=(p < P) & (c < C)[None, :], other=0.0).to(ACC)
    anchor = tl.sum(first, 0) / tl.minimum(P, BLOCK_P).to(ACC)
    begin = run * pixels_per_run
    n = tl.minimum(P - begin, pixels_per_run).to(tl.int32)
    x_ptr += begin * C
    sums = tl.zeros((BLOCK_P, c.shape[0]), ACC)
    squares = tl.zeros((BLOCK_P, c.shape[0]), ACC)
    for p0 in tl.range(0, n, BLOCK_P, num_stages=STAGES):
        mask = (p0 + p < n) & (c < C)[None, :]
        x = tl.load(x_ptr + (p0 + p) * C + c[None, :], mask=mask, other=0.0).to(ACC)
        x = tl.where(mask, x - anchor[None, :], 0.0)
        sums += x
        squares += x * x
    total = tl.sum(sums, 0)
    shift = total / n.to(ACC)
    tl.store(pointer(row, 2, ACC) + run * C + c, shift, mask=c < C)
    tl.store(pointer(row, 3, ACC) + run * C + c, tl.sum(squares, 0) - total * shift, mask=c < C)
    return anchor


@triton.jit
def _merge_runs(row, anchor, c, C, ACC: tl.constexpr, BLOCK_R: tl.constexpr):
    """Mean and variance of channels ``c`` from all their runs."""
    # other programs wrote these: past the first-level cache, which does not see their writes
    shift_ptr, m2_ptr = pointer(row, 2, ACC), pointer(row, 3, ACC)
    P, pixels_per_run, runs = size(row, 6), size(row, 7), size(row, 8)
    r = tl.arange(0, BLOCK_R)[:, None]
    acc = tl.zeros((BLOCK_R, c.shape[0]), ACC)
    for r0 in range(0, runs, BLOCK_R):
        mask = (r0 + r < runs) & (c < C)[None, :]
        n = tl.minimum(P - (r0 + r).to(tl.int64) * pixels_per_run, pixels_per_run).to(ACC)
        shift = tl.load(shift_ptr + (r0 + r) * C + c[None, :], mask=mask, other=0.0, cache_modifier=".cg")
        acc += tl.where(mask, n * shift, 0.0)
    shift_of_all = tl.sum(acc, 0) / P.to(ACC)
    acc = tl.zeros((BLOCK_R, c.shape[0]), ACC)
    for r0 in range(0, runs, BLOCK_R):
        mask = (r0 + r < runs) & (c < C)[None, :]
        n = tl.minimum(P - (r0 + r).to(tl.int64) * pixels_per_run, pixels_per_run).to(ACC)
        shift = tl.load(shift_ptr + (r0 + r) * C + c[None, :], mask=mask, other=0.0, cache_modifier=".cg")
        shift -= shift_of_all[None, :]
        m2 = tl.load(m2_ptr + (r0 + r) * C + c[None, :], mask=mask, other=0.0, cache_modifier=".cg")
        acc += tl.where(mask, m2 + n * shift * shift, 0.0)
    mean, variance = anchor + shift_of_all, tl.sum(acc, 0) / P.to(ACC)
    # squares of finite numbers have overflowed, and the rest is inf - inf; NaN in a channel is in its mean as well
    return mean, tl.where((variance != variance) & (tl.abs(mean) < float("inf")), float("inf"), variance)


@triton.jit
def _finish_norm(row, mean, variance, c, C, ACC: tl.constexpr):
    invstd = tl.rsqrt(variance + real(row, 17, ACC))
    tl.store(pointer(row, 4, ACC) + c, mean, mask=c < C)
    tl.store(pointer(row, 11, ACC) + c, invstd, mask=c < C)
    tl.store(pointer(row, 12, ACC) + c, channel(pointer(row, 10, ACC), c, C) * invstd, mask=c < C)


@triton.jit(do_not_specialize=["rows"])
def mean_kernel(
    table_ptr,  # rows: x, slots of shifts and of m2 [runs, C], out: mean; C, P, pixels a run, runs, tickets
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    C = channels(row, 5, VECTOR)
    tiles = tl.cdiv(C, BLOCK_C)
    tile = program % tiles
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    anchor = _add_run(row, (program // tiles).to(tl.int64), c, C, MAP, ACC, BLOCK_P, STAGES)
    if is_last(table_ptr + tl.load(row + 9) + tile, size(row, 8)):
        mean, _ = _merge_runs(row, anchor, c, C, ACC, BLOCK_R)
        tl.store(pointer(row, 4, ACC) + c, mean, mask=c < C)


@triton.jit(do_not_specialize=["rows"])
def norm_kernel(
    # rows as those of mean_kernel to the tickets, then gamma, out: r, gamma*r, unbiased variance; running mean and
    # variance, whether statistics are the batch's, eps
    table_ptr,
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    C = channels(row, 5, VECTOR)
    tiles = tl.cdiv(C, BLOCK_C)
    tile = program % tiles
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    if size(row, 16) != 0:
        anchor = _add_run(row, (program // tiles).to(tl.int64), c, C, MAP, ACC, BLOCK_P, STAGES)
        if is_last(table_ptr + tl.load(row + 9) + tile, size(row, 8)):
            P = size(row, 6)
            mean, variance = _merge_runs(row, anchor, c, C, ACC, BLOCK_R)
            unbiased = variance * (P.to(ACC) / tl.maximum(P - 1, 1).to(ACC))
            tl.store(pointer(row, 13, ACC) + c, unbiased, mask=c < C)
            _finish_norm(row, mean, variance, c, C, ACC)
    else:
        mean, variance = channel(pointer(row, 14, ACC), c, C), channel(pointer(row, 15, ACC), c, C)
        _finish_norm(row, mean, variance, c, C, ACC)


@triton.jit(do_not_specialize=["rows"])
def d_z_kernel(
    # rows: d (becomes d_z), z, sum_d, sum_dz, mean, r, gamma*r, out: d_gamma; P, C, factor, whether statistics are the
    # batch's
    table_ptr,
    rows,
    ROW: tl.constexpr,
    MAP: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    P, C = size(row, 9), channels(row, 10, VECTOR)
    tiles = tl.cdiv(C, BLOCK_C)
    begin = (program // tiles).to(tl.int64) * BLOCK_P
    p = tl.arange(0, BLOCK_P)[:, None]
    k = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    invstd, scale = channel(pointer(row, 6, ACC), k, C), channel(pointer(row, 7, ACC), k, C)
    d_gamma = invstd * channel(pointer(row, 4, ACC), k, C)
    if begin == 0:
        tl.store(pointer(row, 8, ACC) + k, d_gamma, mask=k < C)
    b = tl.zeros((BLOCK_C,), ACC)
    c = tl.zeros((BLOCK_C,), ACC)
    if size(row, 12) != 0:
        b = -scale * invstd * d_gamma / P.to(ACC)
        c = -scale * channel(pointer(row, 3, ACC), k, C) / P.to(ACC) - b * channel(pointer(row, 5, ACC), k, C)
    mask = (p < P - begin) & (k < C)[None, :]
    d_ptr, z_ptr = pointer(row, 1, MAP) + begin * C, pointer(row, 2, MAP) + begin * C
    d = tl.load(d_ptr + p * C + k[None, :], mask=mask, other=0.0).to(ACC)
    z = tl.load(z_ptr + p * C + k[None, :], mask=mask, other=0.0).to(ACC)
    d_z = (scale[None, :] * d + b[None, :] * z + c[None, :]) * real(row, 11, ACC)
    tl.store(d_ptr + p * C + k[None, :], cast(d_z, MAP), mask=mask)
