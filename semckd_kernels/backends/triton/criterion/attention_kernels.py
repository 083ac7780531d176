"""Attention of all layers, forward and backward, and the loss.

Reference  stages.attention.allocate (behind the similarities) and allocate_backward; (weight * mse).sum() / (B*S)
Math       hidden = relu(G W1^T + b1), u = hidden W2^T + b2, embedding = u / |u|; energy = <query, key> / soft,
           weight = softmax_T(energy). Back: d_energy[i, j] = weight[i, j] sum_k weight[i, k] (D[i, j] - D[i, k])
           / (B*S*soft), d_embedding = d_energy key or d_energy^T query,
           d_u = (d_embedding - embedding <embedding, d_embedding>) / |u|, d_hidden = (d_u W2) (hidden > 0),
           d_G = d_hidden W1 for students, and each gradient of a parameter a sum over samples
Shapes     L = S + T layers: G [L, B, B], W1 [H, Bq], W2 [D, H], hidden [L, B, H], embedding [L, B, D]; weight, D
           [B, S, T]. G's columns from B to Bq are zero and do not exist
Fused      the energy, d_energy, d_embedding
Traffic    all of it stays in the second-level cache. Latency bounds these kernels
Mapping    embed and its backward: BLOCK_B samples of one layer, which go through all of the layer's steps; what a step
           leaves in memory the next one reads behind a barrier. energy: one sample x BLOCK_S student layers. gradients:
           a tile of one parameter. loss: BLOCK weights a program
Order      loops in order, sums inside a step by a tree; the loss's slots by the last program: repeats bitwise
Limits     products are fp32 without TF32, whatever torch's flags say. T <= BLOCK_T
Measured   not yet
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import cast, softmax
from ..rows import find_row, is_last, pointer, real, size
from .products import dot, relu


@triton.jit
def _product(
    a_ptr,
    a_row,  # strides
    a_column,
    b_ptr,
    b_row,
    b_column,
    i,  # [BLOCK_M]
    j,  # [BLOCK_N]
    M,
    N,
    K,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``[BLOCK_M, BLOCK_N]`` = a @ b, of a ``[M, K]`` and b ``[K, N]``; and the sums of a over K."""
    acc = tl.zeros((i.shape[0], j.shape[0]), ACC)
    total = tl.zeros((i.shape[0],), ACC)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        mask = (i < M)[:, None] & (k < K)[None, :]
        a = tl.load(a_ptr + i[:, None] * a_row + k[None, :] * a_column, mask=mask, other=0.0).to(ACC)
        mask = (k < K)[:, None] & (j < N)[None, :]
        b = tl.load(b_ptr + k[:, None] * b_row + j[None, :] * b_column, mask=mask, other=0.0).to(ACC)
        acc = dot(a, b, acc, "ieee")
        total += tl.sum(a, 1)
    return acc, total


# columns that embed_kernel and embed_backward_kernel have in common
_LAYER = tl.constexpr(1)
_BATCH = tl.constexpr(2)
_COLUMNS = tl.constexpr(3)  # Bq
_HIDDEN_SIZE = tl.constexpr(4)
_SIZE = tl.constexpr(5)
_WEIGHT1 = tl.constexpr(6)
_WEIGHT2 = tl.constexpr(7)
_HIDDEN = tl.constexpr(8)
_EMBEDDING = tl.constexpr(9)
_LENGTH = tl.constexpr(10)
# of embed_kernel
_BIAS1 = tl.constexpr(11)
_BIAS2 = tl.constexpr(12)
_SIMILARITY = tl.constexpr(13)


@triton.jit(do_not_specialize=["rows"])
def embed_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TYPE: tl.constexpr,  # of parameters
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    H = size(row, _HIDDEN_SIZE)
    D = size(row, _SIZE)
    sample = tl.load(row + _LAYER) * B  # the layer's first
    b = program * BLOCK_B + tl.arange(0, BLOCK_B)
    similarity_ptr = pointer(row, _SIMILARITY, ACC) + sample * B
    hidden_ptr = pointer(row, _HIDDEN, ACC) + sample * H
    embedding_ptr = pointer(row, _EMBEDDING, ACC) + sample * D
    weight_ptr = pointer(row, _WEIGHT1, TYPE)
    bias_ptr = pointer(row, _BIAS1, TYPE)
    columns = size(row, _COLUMNS)
    for n0 in range(0, H, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        acc, _ = _product(similarity_ptr, B, 1, weight_ptr, 1, columns, b, n, B, H, B, ACC, BLOCK_K)
        acc = relu(acc + tl.load(bias_ptr + n, mask=n < H, other=0.0).to(ACC)[None, :])
        tl.store(hidden_ptr + b[:, None] * H + n[None, :], acc, mask=(b < B)[:, None] & (n < H)[None, :])

    # hidden is read by other threads than have written it
    tl.debug_barrier()
    weight_ptr = pointer(row, _WEIGHT2, TYPE)
    bias_ptr = pointer(row, _BIAS2, TYPE)
    squares = tl.zeros((BLOCK_B,), ACC)
    for n0 in range(0, D, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        acc, _ = _product(hidden_ptr, H, 1, weight_ptr, 1, H, b, n, B, D, H, ACC, BLOCK_K)
        acc += tl.load(bias_ptr + n, mask=n < D, other=0.0).to(ACC)[None, :]
        squares += tl.sum(acc * acc, 1)
        tl.store(embedding_ptr + b[:, None] * D + n[None, :], acc, mask=(b < B)[:, None] & (n < D)[None, :])

    # a row of zeros stays zero
    length = tl.where(squares == 0, 1.0, tl.sqrt(squares))
    tl.store(pointer(row, _LENGTH, ACC) + sample + b, length, mask=b < B)
    tl.debug_barrier()
    for n0 in range(0, D, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        ptr = embedding_ptr + b[:, None] * D + n[None, :]
        mask = (b < B)[:, None] & (n < D)[None, :]
        tl.store(ptr, tl.load(ptr, mask=mask, other=0.0) / length[:, None], mask=mask)


# columns of energy_kernel's table; _BATCH and _SIZE are those of embed_kernel
_EMBEDDINGS = tl.constexpr(1)
_S_LAYERS = tl.constexpr(3)
_T_LAYERS = tl.constexpr(4)
_WEIGHT = tl.constexpr(6)
_SOFT = tl.constexpr(7)


@triton.jit(do_not_specialize=["rows"])
def energy_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    D = size(row, _SIZE)
    S = size(row, _S_LAYERS)
    T = size(row, _T_LAYERS)
    blocks = tl.cdiv(S, BLOCK_S)
    b = (program // blocks).to(tl.int64)
    i = program % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    j = tl.arange(0, BLOCK_T)
    query_ptr = pointer(row, _EMBEDDINGS, ACC) + b * D
    acc, _ = _product(query_ptr, B * D, 1, query_ptr + S * B * D, 1, B * D, i, j, S, T, D, ACC, BLOCK_K)
    energy = acc / real(row, _SOFT, ACC)
    weight = softmax(tl.where((j < T)[None, :], energy, float("-inf")))
    at = i[:, None] * T + j[None, :]
    mask = (i < S)[:, None] & (j < T)[None, :]
    tl.store(pointer(row, _WEIGHT, ACC) + b * S * T + at, weight, mask=mask)


# columns of loss_kernel's table; TICKET counts programs
_WEIGHTS = tl.constexpr(1)
_ERRORS = tl.constexpr(2)
_SLOTS = tl.constexpr(3)
_LOSS = tl.constexpr(4)
_COUNT = tl.constexpr(5)
_ROWS = tl.constexpr(6)  # B * S
_TICKET = tl.constexpr(7)


@triton.jit(do_not_specialize=["rows"])
def loss_kernel(table_ptr, rows, ROW: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr):
    row, program = find_row(table_ptr, rows, ROW)
    count = size(row, _COUNT)
    slots_ptr = pointer(row, _SLOTS, ACC)
    n = program * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(pointer(row, _WEIGHTS, ACC) + n, mask=n < count, other=0.0)
    mse = tl.load(pointer(row, _ERRORS, ACC) + n, mask=n < count, other=0.0)
    tl.store(slots_ptr + program, tl.sum(weight * mse, 0))
    programs = tl.cdiv(count, BLOCK)
    if is_last(table_ptr + tl.load(row + _TICKET), programs):
        acc = tl.zeros((BLOCK_R,), ACC)
        for r0 in range(0, programs, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            # other programs wrote these: past the first-level cache, which does not see their writes
            acc += tl.load(slots_ptr + r, mask=r < programs, other=0.0, cache_modifier=".cg")
        tl.store(pointer(row, _LOSS, ACC), tl.sum(acc, 0) / size(row, _ROWS).to(ACC))


# columns of embed_backward_kernel's table, behind _LENGTH
_STUDENTS = tl.constexpr(11)
_TEACHERS = tl.constexpr(12)
_ALPHA = tl.constexpr(13)
_MSE = tl.constexpr(14)
_D_OUT = tl.constexpr(15)
_D_HIDDEN = tl.constexpr(16)
_D_SIMILARITY = tl.constexpr(17)
_DIVISOR = tl.constexpr(18)


@triton.jit
def _d_energy(row, b, i, j, ACC: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of samples b, and of one student and one teacher layer."""
    T = size(row, _TEACHERS)
    k = tl.arange(0, BLOCK_T)[None, :]
    at = (b[:, None] * size(row, _STUDENTS) + i) * T + k
    mask = (b < size(row, _BATCH))[:, None] & (k < T)
    alphas = tl.load(pointer(row, _ALPHA, ACC) + at, mask=mask, other=0.0)
    mse = tl.load(pointer(row, _MSE, ACC) + at, mask=mask, other=0.0)
    alpha = tl.sum(tl.where(k == j, alphas, 0.0), 1)
    own = tl.sum(tl.where(k == j, mse, 0.0), 1)
    # a sum of differences: large errors that differ little cancel exactly
    return alpha * tl.sum((own[:, None] - mse) * alphas, 1) / real(row, _DIVISOR, ACC)


@triton.jit
def _d_embedding(row, b, n, layer, ACC: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of samples b and features n of a layer, and what these features add to ``<embedding, d_embedding>``."""
    B = size(row, _BATCH)
    D = size(row, _SIZE)
    S = size(row, _STUDENTS)
    is_student = layer < S
    embedding_ptr = pointer(row, _EMBEDDING, ACC)
    at = b[:, None] * D + n[None, :]
    mask = (b < B)[:, None] & (n < D)[None, :]
    d = tl.zeros((b.shape[0], n.shape[0]), ACC)
    for other in range(tl.where(is_student, size(row, _TEACHERS), S)):
        i = tl.where(is_student, layer, other)
        j = tl.where(is_student, other, layer - S)
        d_energy = _d_energy(row, b, i, j, ACC, BLOCK_T)
        partner = tl.where(is_student, S + other, other)
        d += d_energy[:, None] * tl.load(embedding_ptr + partner * B * D + at, mask=mask, other=0.0)
    own = tl.load(embedding_ptr + layer * B * D + at, mask=mask, other=0.0)
    return d, tl.sum(own * d, 1)


@triton.jit(do_not_specialize=["rows"])
def embed_backward_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TYPE: tl.constexpr,  # of parameters
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    B = size(row, _BATCH)
    H = size(row, _HIDDEN_SIZE)
    D = size(row, _SIZE)
    layer = size(row, _LAYER)
    sample = layer.to(tl.int64) * B  # the layer's first
    b = program * BLOCK_B + tl.arange(0, BLOCK_B)
    d_out_ptr = pointer(row, _D_OUT, ACC) + sample * D
    along = tl.zeros((BLOCK_B,), ACC)
    for n0 in range(0, D, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        d, part = _d_embedding(row, b, n, layer, ACC, BLOCK_T)
        along += part
        tl.store(d_out_ptr + b[:, None] * D + n[None, :], d, mask=(b < B)[:, None] & (n < D)[None, :])

    # what one step stores, other threads read in the next
    tl.debug_barrier()
    length = tl.load(pointer(row, _LENGTH, ACC) + sample + b, mask=b < B, other=1.0)
    embedding_ptr = pointer(row, _EMBEDDING, ACC) + sample * D
    for n0 in range(0, D, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        at = b[:, None] * D + n[None, :]
        mask = (b < B)[:, None] & (n < D)[None, :]
        embedding = tl.load(embedding_ptr + at, mask=mask, other=0.0)
        d = tl.load(d_out_ptr + at, mask=mask, other=0.0)
        tl.store(d_out_ptr + at, (d - embedding * along[:, None]) / length[:, None], mask=mask)

    tl.debug_barrier()
    weight_ptr = pointer(row, _WEIGHT2, TYPE)
    hidden_ptr = pointer(row, _HIDDEN, ACC) + sample * H
    d_hidden_ptr = pointer(row, _D_HIDDEN, ACC) + sample * H
    for n0 in range(0, H, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        acc, _ = _product(d_out_ptr, D, 1, weight_ptr, H, 1, b, n, B, H, D, ACC, BLOCK_K)
        at = b[:, None] * H + n[None, :]
        mask = (b < B)[:, None] & (n < H)[None, :]
        # a product, so that NaN stays
        is_active = (tl.load(hidden_ptr + at, mask=mask, other=0.0) > 0).to(ACC)
        tl.store(d_hidden_ptr + at, acc * is_active, mask=mask)

    # the teacher's similarities have no gradient
    if layer < size(row, _STUDENTS):
        tl.debug_barrier()
        weight_ptr = pointer(row, _WEIGHT1, TYPE)
        out_ptr = pointer(row, _D_SIMILARITY, ACC) + sample * B
        columns = size(row, _COLUMNS)
        for n0 in range(0, B, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N)
            acc, _ = _product(d_hidden_ptr, H, 1, weight_ptr, columns, 1, b, n, B, B, H, ACC, BLOCK_K)
            tl.store(out_ptr + b[:, None] * B + n[None, :], acc, mask=(b < B)[:, None] & (n < B)[None, :])


# columns of parameter_gradients_kernel's table: two matrices [terms, m] and [terms, present], where in their tensors
# they begin, and the gradients of a weight [m, n], whose columns from `present` on are zero, and of its bias [m]
_A = tl.constexpr(1)
_A_OFFSET = tl.constexpr(2)
_B = tl.constexpr(3)
_B_OFFSET = tl.constexpr(4)
_TERMS = tl.constexpr(5)
_M = tl.constexpr(6)
_PRESENT = tl.constexpr(7)
_N = tl.constexpr(8)
_D_WEIGHT = tl.constexpr(9)
_STRIDE_M = tl.constexpr(10)
_STRIDE_N = tl.constexpr(11)
_D_BIAS = tl.constexpr(12)


@triton.jit(do_not_specialize=["rows"])
def parameter_gradients_kernel(
    table_ptr,
    rows,
    ROW: tl.constexpr,
    TO: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, program = find_row(table_ptr, rows, ROW)
    M = size(row, _M)
    N = size(row, _N)
    present = size(row, _PRESENT)
    tiles_n = tl.cdiv(N, BLOCK_N)
    i = program // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    j = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    a_ptr = pointer(row, _A, ACC) + tl.load(row + _A_OFFSET)
    b_ptr = pointer(row, _B, ACC) + tl.load(row + _B_OFFSET)
    acc, total = _product(a_ptr, 1, M, b_ptr, present, 1, i, j, M, present, size(row, _TERMS), ACC, BLOCK_K)
    at = i[:, None] * size(row, _STRIDE_M) + j[None, :] * size(row, _STRIDE_N)
    mask = (i < M)[:, None] & (j < N)[None, :]
    tl.store(pointer(row, _D_WEIGHT, TO) + at, cast(acc, TO), mask=mask)
    if program % tiles_n == 0:
        tl.store(pointer(row, _D_BIAS, TO) + i, cast(total, TO), mask=i < M)
