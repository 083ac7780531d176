"""The pair loss of any number of ragged pairs, one launch each way: the device side of ``pair_loss.py``.

Reference  semckd_kernels.backends.reference.pair_loss and pair_mse, and their derivatives
Math       D[b, q] = sum_e (s_q[b, e] - t_q[b, e])^2 / N_q
           loss = sum_bq alpha[b, q] * D[b, q] / (B * S), alpha = weight or its softmax over T
           d_s_q[b, e] = coef[b, q] * 2 / N_q * (s_q[b, e] - t_q[b, e]), d_t = -d_s
           coef = d_loss * alpha / (B * S), or d_pair_mse
           d_alpha = d_loss * D / (B * S), d_weight = d_alpha, or alpha * (d_alpha - sum_k alpha_k * d_alpha_k)
Shapes     s, t: Q = S * T maps [B, N_q] each, N_q differs from pair to pair; weight, D: [B, S, T]
Fused      differences, squares, alpha and coef are never written; softmax and its Jacobian run inside
Traffic    P = sum_q B * N_q elements. Forward reads s and t: 2P. Backward reads both and writes what is asked for:
           3P for d_s, 4P with d_t. Bound by bandwidth: three operations an element.
           Besides: 104 bytes a pair and 8 a sample uploaded, 4 (fp64: 8) a program written and read once
Mapping    grid [B * tiles], one tile = BLOCK_N * steps consecutive elements of one sample of one pair, so no program
           is empty; a thread owns 32 bytes of each map a step. A program finds its pair in the table
Order      a thread's sum in element order, threads by a tree, tiles in a fixed order by the program that draws the
           last ticket of its sample, samples by the one that draws the last ticket of all. Who draws it does not
           matter for the sum, so results repeat bitwise; tickets are integers
Limits     one launch for each combination of the maps' types; B * tiles < 2^31. 128-bit accesses where the maps and
           their samples are aligned to 16 bytes, decided for each pair, one element at a time elsewhere
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast, softmax
from .table import COLUMNS

# columns of the pair table
COLUMN_COUNT = tl.constexpr(len(COLUMNS))
COL_S = tl.constexpr(COLUMNS.index("s"))
COL_T = tl.constexpr(COLUMNS.index("t"))
COL_D_S = tl.constexpr(COLUMNS.index("d_s"))
COL_D_T = tl.constexpr(COLUMNS.index("d_t"))
COL_NUMEL = tl.constexpr(COLUMNS.index("numel"))
COL_FIRST_TILE = tl.constexpr(COLUMNS.index("first_tile"))
COL_TILES = tl.constexpr(COLUMNS.index("tiles"))
COL_PAIR = tl.constexpr(COLUMNS.index("pair"))
COL_ALIGNED = tl.constexpr(COLUMNS.index("aligned"))
# a map's sample stride stands this far behind its pointer
STRIDE_OF = tl.constexpr(COLUMNS.index("s_stride") - COLUMNS.index("s"))

# larger than the number of any tile
NO_TILE = tl.constexpr(1 << 40)


@triton.jit
def _find_row(table_ptr, tile, pairs, PAIRS_POW2: tl.constexpr):
    """The row of the pair that owns a tile."""
    r = tl.arange(0, PAIRS_POW2)
    first = tl.load(table_ptr + r * COLUMN_COUNT + COL_FIRST_TILE, mask=r < pairs, other=NO_TILE)
    return table_ptr + (tl.sum((first <= tile).to(tl.int32), 0) - 1) * COLUMN_COUNT


@triton.jit
def _run(row, b, begin, COLUMN: tl.constexpr, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    """A pointer to a tile: a sample's run of one map, from element ``begin`` on."""
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(TYPE))
    stride = tl.load(row + COLUMN + STRIDE_OF)
    if VECTOR > 1:
        # what comes out of memory carries no alignment of its own; without this every access is scalar
        pointer = tl.multiple_of(pointer, 16)
        stride = tl.multiple_of(stride, VECTOR)
    return pointer + b * stride + begin


@triton.jit
def _tile_numel(row, begin, steps, BLOCK_N: tl.constexpr, VECTOR: tl.constexpr):
    """Elements of the tile that begins at ``begin``."""
    left = tl.minimum(tl.load(row + COL_NUMEL) - begin, steps.to(tl.int64) * BLOCK_N).to(tl.int32)
    # the mask of a vector must be known to be all true or all false
    return tl.multiple_of(left, VECTOR) if VECTOR > 1 else left


@triton.jit
def _load(pointer, mask, ACC_TYPE: tl.constexpr):
    return tl.load(pointer, mask=mask, other=0.0).to(ACC_TYPE)


@triton.jit
def _tile_error(
    row,
    b,
    begin,
    steps,
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    ACC_TYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The sum of squared differences over a tile."""
    s = _run(row, b, begin, COL_S, S_TYPE, VECTOR)
    t = _run(row, b, begin, COL_T, T_TYPE, VECTOR)
    numel = _tile_numel(row, begin, steps, BLOCK_N, VECTOR)
    acc = tl.zeros((BLOCK_N,), ACC_TYPE)
    for e0 in range(0, numel, BLOCK_N):
        e = e0 + tl.arange(0, BLOCK_N)
        diff = _load(s + e, e < numel, ACC_TYPE) - _load(t + e, e < numel, ACC_TYPE)
        acc += diff * diff
    return tl.sum(acc, 0)


@triton.jit
def _add_tiles(
    table_ptr,
    slots_ptr,  # [tiles] of one sample
    mse_ptr,  # [Q] of that sample
    pairs,
    ACC_TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Adds the partial sums of one sample, pair by pair, and writes its pair errors."""
    for r0 in range(0, pairs, ROWS):
        r = r0 + tl.arange(0, ROWS)
        row = table_ptr + r * COLUMN_COUNT
        first = tl.load(row + COL_FIRST_TILE, mask=r < pairs, other=0).to(tl.int32)
        count = tl.load(row + COL_TILES, mask=r < pairs, other=0).to(tl.int32)
        acc = tl.zeros((ROWS, COLS), ACC_TYPE)
        for c0 in range(0, tl.max(count, 0), COLS):
            c = c0 + tl.arange(0, COLS)
            # other programs wrote these: past the first-level cache, which does not see their writes
            acc += tl.load(
                slots_ptr + first[:, None] + c[None, :],
                mask=c[None, :] < count[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
        numel = tl.load(row + COL_NUMEL, mask=r < pairs, other=1)
        q = tl.load(row + COL_PAIR, mask=r < pairs, other=0)
        tl.store(mse_ptr + q, tl.sum(acc, 1) / numel.to(ACC_TYPE), mask=r < pairs)


@triton.jit
def _weighted_mean(
    weight_ptr, mse_ptr, B, S, T, ACC_TYPE: tl.constexpr, SOFTMAX: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """The loss from all pair errors, [B * S, T]."""
    acc = tl.zeros((ROWS,), ACC_TYPE)
    j = tl.arange(0, COLS)[None, :]
    for r0 in range(0, B * S, ROWS):
        r = r0 + tl.arange(0, ROWS)[:, None]
        at = r * T + j
        mask = (r < B * S) & (j < T)
        mse = tl.load(mse_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
        if SOFTMAX:
            energy = tl.load(weight_ptr + at, mask=mask, other=float("-inf"))
            # rows past the end would have no finite energy
            alpha = softmax(tl.where(r < B * S, energy, 0.0))
        else:
            alpha = tl.load(weight_ptr + at, mask=mask, other=0.0)
        acc += tl.sum(tl.where(mask, alpha * mse, 0.0), 1)
    return tl.sum(acc, 0) / (B * S).to(ACC_TYPE)


# sizes change from call to call (the last batch of an epoch): no variant of the kernel for 1 and for multiples of 16
SIZES = ["B", "S", "T", "pairs", "tiles", "steps"]


@triton.jit(do_not_specialize=SIZES)
def pair_loss_fwd_kernel(
    table_ptr,  # [pairs] rows, then B + 1 tickets that are zero
    weight_ptr,  # [B, S, T]
    slots_ptr,  # [B, tiles], scratch
    mse_ptr,  # [B, S * T], out
    loss_ptr,  # scalar, out; None: pair errors only
    B,
    S,
    T,
    pairs,
    tiles,
    steps,
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    ACC_TYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
    PAIRS_POW2: tl.constexpr,
    T_POW2: tl.constexpr,
    REDUCE_TILES: tl.constexpr,
    REDUCE_ERRORS: tl.constexpr,
    SOFTMAX: tl.constexpr,
):
    pid = tl.program_id(0)
    b = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    row = _find_row(table_ptr, tile, pairs, PAIRS_POW2)
    begin = (tile - tl.load(row + COL_FIRST_TILE)) * steps * BLOCK_N
    if tl.load(row + COL_ALIGNED) != 0:
        error = _tile_error(row, b, begin, steps, S_TYPE, T_TYPE, ACC_TYPE, BLOCK_N, VECTOR)
    else:
        error = _tile_error(row, b, begin, steps, S_TYPE, T_TYPE, ACC_TYPE, BLOCK_N, 1)
    tl.store(slots_ptr + pid, error)

    # the ticket's release must follow what other threads of this program stored
    tl.debug_barrier()
    tickets_ptr = table_ptr + pairs * COLUMN_COUNT
    if tl.atomic_add(tickets_ptr + b, 1, sem="acq_rel") == tiles - 1:
        ROWS: tl.constexpr = min(PAIRS_POW2, 16)
        _add_tiles(table_ptr, slots_ptr + b * tiles, mse_ptr + b * S * T, pairs, ACC_TYPE, ROWS, REDUCE_TILES // ROWS)
        if loss_ptr is not None:
            tl.debug_barrier()
            if tl.atomic_add(tickets_ptr + B, 1, sem="acq_rel") == B - 1:
                loss = _weighted_mean(
                    weight_ptr, mse_ptr, B, S, T, ACC_TYPE, SOFTMAX, max(REDUCE_ERRORS // T_POW2, 1), T_POW2
                )
                tl.store(loss_ptr, loss)


@triton.jit
def _write_gradients(
    row,
    b,
    begin,
    steps,
    factor,
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    ACC_TYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
    NEED_S: tl.constexpr,
    NEED_T: tl.constexpr,
):
    """d_s = factor * (s - t) and d_t = -d_s over a tile."""
    s = _run(row, b, begin, COL_S, S_TYPE, VECTOR)
    t = _run(row, b, begin, COL_T, T_TYPE, VECTOR)
    d_s = _run(row, b, begin, COL_D_S, S_TYPE, VECTOR)
    d_t = _run(row, b, begin, COL_D_T, T_TYPE, VECTOR)
    numel = _tile_numel(row, begin, steps, BLOCK_N, VECTOR)
    for e0 in range(0, numel, BLOCK_N):
        e = e0 + tl.arange(0, BLOCK_N)
        d = factor * (_load(s + e, e < numel, ACC_TYPE) - _load(t + e, e < numel, ACC_TYPE))
        if NEED_S:
            tl.store(d_s + e, cast(d, S_TYPE), mask=e < numel)
        if NEED_T:
            tl.store(d_t + e, cast(-d, T_TYPE), mask=e < numel)


@triton.jit(do_not_specialize=SIZES)
def pair_loss_bwd_kernel(
    table_ptr,  # [pairs] rows
    upstream_ptr,  # d_loss, scalar, or d_pair_mse, [B, S * T]
    weight_ptr,  # [B, S, T]
    mse_ptr,  # [B, S * T]
    d_weight_ptr,  # [B, S, T], out; None: the upstream gradient is d_pair_mse
    B,
    S,
    T,
    pairs,
    tiles,
    steps,
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    ACC_TYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
    PAIRS_POW2: tl.constexpr,
    T_POW2: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NEED_S: tl.constexpr,
    NEED_T: tl.constexpr,
):
    pid = tl.program_id(0)
    b = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    row = _find_row(table_ptr, tile, pairs, PAIRS_POW2)
    q = tl.load(row + COL_PAIR)
    at = b * S * T + q
    begin = (tile - tl.load(row + COL_FIRST_TILE)) * steps * BLOCK_N

    if d_weight_ptr is None:
        coef = tl.load(upstream_ptr + at)
    else:
        d_mean = tl.load(upstream_ptr) / (B * S).to(ACC_TYPE)
        if SOFTMAX:
            k = tl.arange(0, T_POW2)
            # weights and errors of this pair's student layer
            layer = at - q % T
            alphas = softmax(tl.load(weight_ptr + layer + k, mask=k < T, other=float("-inf")))
            mse = tl.load(mse_ptr + layer + k, mask=k < T, other=0.0)
            own = k == q % T
            alpha = tl.sum(tl.where(own, alphas, 0.0), 0)
            # D - sum_k alpha_k D_k as a sum of differences: large errors that differ little cancel exactly
            own_mse = tl.sum(tl.where(own, mse, 0.0), 0)
            d_weight = d_mean * alpha * tl.sum(alphas * (own_mse - mse), 0)
        else:
            alpha = tl.load(weight_ptr + at)
            d_weight = d_mean * tl.load(mse_ptr + at)
        if begin == 0:
            tl.store(d_weight_ptr + at, d_weight)
        coef = d_mean * alpha

    if NEED_S or NEED_T:
        factor = coef * 2 / tl.load(row + COL_NUMEL).to(ACC_TYPE)
        if tl.load(row + COL_ALIGNED) != 0:
            _write_gradients(row, b, begin, steps, factor, S_TYPE, T_TYPE, ACC_TYPE, BLOCK_N, VECTOR, NEED_S, NEED_T)
        else:
            _write_gradients(row, b, begin, steps, factor, S_TYPE, T_TYPE, ACC_TYPE, BLOCK_N, 1, NEED_S, NEED_T)
