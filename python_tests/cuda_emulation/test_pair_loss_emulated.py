"""The CUDA pair loss, executed on the CPU: every shape, type and layout against fp64, both ways."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from emulation import ASCENDING, SCHEDULES, Buffer, Emulation
from numpy.typing import NDArray
from pair_loss_problem import CPair, CPairList, CWeighting, Expected, Pair, Problem, narrow, widen
from tolerances import FLOOR

LOW = ("float32", "float16", "bfloat16")
COMBINATIONS = [*itertools.product(LOW, LOW), ("float64", "float64")]
# the kernels' kMaxPairs
TABLE = 40
THREADS = 256

RAGGED = (1, 7, 65, 4099, 520, 16)


def ragged(s_dtype: str = "float32", t_dtype: str = "float32", **layout: int | bool) -> list[Pair]:
    """Six pairs of very different sizes, one of them in several chunks."""
    return [Pair(N, s_dtype, t_dtype, **layout) for N in RAGGED]  # type: ignore[arg-type]


def relative_error(value: NDArray[np.generic], exact: NDArray[np.float64]) -> float:
    error = np.linalg.norm((value.astype(np.float64) - exact).ravel())
    return float(error / (np.linalg.norm(exact.ravel()) or 1.0))


def assert_close(value: NDArray[np.generic], exact: NDArray[np.float64], accumulator: str, what: str) -> None:
    error = relative_error(value, exact)
    assert error <= FLOOR[accumulator], f"{what}: relative error {error:.2e}"


def assert_gradient_close(
    problem: Problem, buffer: Buffer, q: int, stride: int, exact: NDArray[np.float64], what: str
) -> None:
    """A gradient may be off by what rounding it to its type costs, twice, and by the error of its sums."""
    dtype = buffer.dtype
    error = relative_error(widen(problem.samples(buffer, q, stride), dtype), exact)
    rounding = relative_error(widen(narrow(exact, dtype), dtype), exact)
    assert error <= 2 * rounding + FLOOR[problem.accumulator], f"{what} of pair {q}: relative error {error:.2e}"


def check(problem: Problem) -> None:
    """Runs both ways and compares everything."""
    expected = Expected.of(problem)
    problem.run_forward()
    assert_close(problem.pair_mse.array.reshape(problem.B, problem.Q), expected.pair_mse, problem.accumulator, "mse")
    if problem.loss:
        assert_close(problem.loss.array[0], expected.loss, problem.accumulator, "loss")
    gaps = [gap_of(problem, q).copy() for q in range(problem.Q)]
    problem.run_backward()
    if problem.d_weight:
        got = problem.d_weight.array.reshape(problem.B, problem.Q)
        assert_close(got, expected.d_weight, problem.accumulator, "d_weight")
    for q, (maps, exact) in enumerate(zip(problem.maps, expected.d_s, strict=True)):
        if maps.d_s:
            assert_gradient_close(problem, maps.d_s, q, maps.d_s_stride, exact, "d_s")
        if maps.d_t:
            assert_gradient_close(problem, maps.d_t, q, problem.pairs[q].N, -exact, "d_t")
        np.testing.assert_array_equal(gap_of(problem, q), gaps[q], err_msg="written between two samples")


def gap_of(problem: Problem, q: int) -> NDArray[np.generic]:
    """What lies between the samples of a student map."""
    pair, maps = problem.pairs[q], problem.maps[q]
    if pair.s_gap <= 0 or problem.B < 2:
        return np.empty(0)
    whole = maps.s.array[: (problem.B - 1) * maps.s_stride].reshape(problem.B - 1, maps.s_stride)
    return whole[:, pair.N :]


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
@pytest.mark.parametrize("softmax", [False, True])
def test_types(emulation: Emulation, s_dtype: str, t_dtype: str, softmax: bool) -> None:
    check(Problem(emulation, ragged(s_dtype, t_dtype), B=3, S=2, T=3, softmax=softmax))


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
def test_pair_errors_alone(emulation: Emulation, s_dtype: str, t_dtype: str) -> None:
    check(Problem(emulation, ragged(s_dtype, t_dtype), B=2, S=2, T=3, weighted=False))


@pytest.mark.parametrize(("need_s", "need_t"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_that_are_not_asked_for(emulation: Emulation, need_s: bool, need_t: bool, weighted: bool) -> None:
    check(Problem(emulation, ragged(), B=3, S=2, T=3, need_s=need_s, need_t=need_t, weighted=weighted))


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
@pytest.mark.parametrize("misaligned_by", [1, 3])
def test_equally_misaligned_maps(emulation: Emulation, s_dtype: str, t_dtype: str, misaligned_by: int) -> None:
    # an odd N leaves every sample with a misalignment of its own
    pairs = [Pair(N, s_dtype, t_dtype, misaligned_by=misaligned_by) for N in (67, 515)]
    check(Problem(emulation, pairs, B=4, S=1, T=2))


@pytest.mark.parametrize(("s_dtype", "t_dtype"), [("float32", "float32"), ("bfloat16", "float16"), ("float64",) * 2])
def test_differently_misaligned_maps(emulation: Emulation, s_dtype: str, t_dtype: str) -> None:
    pairs = [Pair(N, s_dtype, t_dtype, misaligned_by=1, t_misaligned_by=0) for N in (64, 515)]
    check(Problem(emulation, pairs, B=3, S=1, T=2))


@pytest.mark.parametrize(("s_dtype", "t_dtype"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize(("s_gap", "t_gap"), [(13, 0), (64, 8), (0, 5)])
@pytest.mark.parametrize("in_place", [False, True])
def test_strided_samples(
    emulation: Emulation, s_dtype: str, t_dtype: str, s_gap: int, t_gap: int, in_place: bool
) -> None:
    pairs = [Pair(N, s_dtype, t_dtype, s_gap, t_gap, in_place=in_place) for N in (40, 519)]
    check(Problem(emulation, pairs, B=3, S=2, T=1, softmax=True))


@pytest.mark.parametrize("N", [64, 519])
def test_expanded_batches(emulation: Emulation, N: int) -> None:
    pairs = [Pair(N, t_gap=-N), Pair(N, "float16", "float16", s_gap=-N), Pair(N, s_gap=-N, t_gap=-N)]
    check(Problem(emulation, pairs, B=3, S=1, T=3))


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
def test_in_place_backward(emulation: Emulation, s_dtype: str, t_dtype: str) -> None:
    check(Problem(emulation, ragged(s_dtype, t_dtype, in_place=True), B=2, S=2, T=3, softmax=True))


def test_types_that_differ_from_pair_to_pair(emulation: Emulation) -> None:
    pairs = [Pair(10 + q, *COMBINATIONS[q]) for q in range(9)]
    launches = emulation.launches(lambda: check(Problem(emulation, pairs, B=3, S=3, T=3, softmax=True)))
    assert len(launches) == 2 * 9


@pytest.mark.parametrize(("S", "T"), [(1, TABLE), (1, TABLE + 1), (2, TABLE + 3)])
def test_more_pairs_than_a_table_holds(emulation: Emulation, S: int, T: int) -> None:
    # softmax rows longer than a warp on the way
    pairs = [Pair(3 + q % 5) for q in range(S * T)]
    launches = emulation.launches(lambda: check(Problem(emulation, pairs, B=2, S=S, T=T, softmax=True)))
    assert len(launches) == 2 * -(-S * T // TABLE)


def test_full_tables_of_two_types(emulation: Emulation) -> None:
    pairs = [Pair(5, *(("float32", "float32"), ("bfloat16", "float32"))[q % 2]) for q in range(2 * TABLE + 2)]
    launches = emulation.launches(lambda: check(Problem(emulation, pairs, B=1, S=2, T=TABLE + 1)))
    assert len(launches) == 2 * 4


@pytest.mark.parametrize("weighted", [True, False])
def test_empty_batch(emulation: Emulation, weighted: bool) -> None:
    problem = Problem(emulation, [Pair(8), Pair(5)], B=0, S=1, T=2, weighted=weighted)

    def run() -> None:
        problem.run_forward()
        problem.run_backward()

    launches = emulation.launches(run)
    assert launches == []
    assert problem.loss is None or problem.loss.array[0] == 0


def test_single_sample_single_element(emulation: Emulation) -> None:
    check(Problem(emulation, [Pair(1)], B=1, S=1, T=1, softmax=True))


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_energies_that_would_overflow(emulation: Emulation, shift: float) -> None:
    problem = Problem(emulation, [Pair(9)] * 6, B=2, S=2, T=3, softmax=True)
    problem.set_weight(problem.weight + shift)
    check(problem)


def test_nan_reaches_its_own_sample_and_the_loss(emulation: Emulation) -> None:
    problem = Problem(emulation, [Pair(70), Pair(4100)], B=3, S=1, T=2)
    problem.maps[1].s.array[4100 + 4099] = np.nan
    problem.run_forward()
    mse = problem.pair_mse.array.reshape(3, 2)
    assert np.isnan(mse[1, 1])
    assert np.isnan(mse).sum() == 1
    assert problem.loss is not None
    assert np.isnan(problem.loss.array[0])


def results(problem: Problem) -> list[bytes]:
    """The bits of everything that a problem's two passes write."""
    problem.run_forward()
    problem.run_backward()
    outputs = [problem.pair_mse, problem.loss, problem.d_weight]
    for maps in problem.maps:
        outputs += [maps.d_s, maps.d_t]
    return [buffer.array.tobytes() for buffer in outputs if buffer]


@pytest.mark.parametrize(("s_dtype", "t_dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("float64",) * 2])
@pytest.mark.parametrize("softmax", [False, True])
def test_same_bits_in_any_order(emulation: Emulation, s_dtype: str, t_dtype: str, softmax: bool) -> None:
    seen = []
    for schedule in SCHEDULES:
        emulation.schedule(schedule)
        problem = Problem(emulation, ragged(s_dtype, t_dtype), B=2, S=2, T=3, softmax=softmax)
        seen.append(results(problem))
    assert all(bits == seen[0] for bits in seen[1:])


def test_shared_memory_need_not_be_zero_nor_poisoned(emulation: Emulation) -> None:
    emulation.schedule(ASCENDING, poison=False)
    check(Problem(emulation, ragged(), B=2, S=2, T=3))


def test_offsets_beyond_32_bits(emulation: Emulation) -> None:
    # samples that lie 2^32 elements apart, in memory that is reserved only
    far, N = 1 << 32, 300
    problem = Problem(emulation, [Pair(N, "bfloat16", "bfloat16")], B=2, S=1, T=1)
    maps = problem.maps[0]
    for name in ("s", "d_s"):
        near = getattr(maps, name)
        buffer = emulation.buffer("bfloat16", far + N)
        buffer.array[:N], buffer.array[far:] = near.array[:N], near.array[N:]
        setattr(maps, name, buffer)
    maps.s_stride = maps.d_s_stride = far
    check(problem)


# --- the host side alone: launches are recorded, not run -----------------------------------------------------------


def dry_launches(emulation: Emulation, B: int, sizes: list[int]) -> tuple[int, list[int]]:
    """The error code and the blocks of each launch of a forward pass over maps that do not exist."""
    emulation.schedule(dry_run=True)
    table = (CPair * len(sizes))(*[CPair(N=N, s_stride=N, t_stride=N) for N in sizes])
    c_list, weighting = CPairList(table, len(sizes), B), CWeighting()
    # reserved, not touched
    workspace = emulation.buffer("uint8", 1 << 34)
    errors = []
    library = emulation.library
    launches = emulation.launches(
        lambda: errors.append(
            library.kernels_pair_loss_fwd(
                ctypes.byref(c_list), ctypes.byref(weighting), ctypes.c_void_p(workspace.pointer), None, None
            )
        )
    )
    assert all(record.threads == THREADS and record.parameter_bytes <= 4096 for record in launches)
    return errors[0], [record.blocks for record in launches]


def test_blocks_of_real_networks(emulation: Emulation) -> None:
    cifar = [64 * 32 * 32, 128 * 16 * 16, 256 * 8 * 8] * 3
    assert dry_launches(emulation, 64, cifar) == (0, [64 * 3 * (16 + 8 + 4)])
    imagenet = [64 * 56 * 56, 128 * 28 * 28, 256 * 14 * 14, 512 * 7 * 7] * 4
    error, (blocks,) = dry_launches(emulation, 256, imagenet)
    assert not error
    assert 8192 < blocks <= 16384


def test_chunks_grow_with_the_problem(emulation: Emulation) -> None:
    # 2^50 elements: with the chunks of the cases above there were more blocks than a grid may have
    assert dry_launches(emulation, 1 << 20, [1 << 30]) == (0, [1 << 30])


def test_grids_that_are_full_are_followed_by_others(emulation: Emulation) -> None:
    # the sum of all blocks exceeds what one grid may have
    B = 1 << 26
    error, blocks = dry_launches(emulation, B, [1] * 3 + [1 << 24] * 2)
    assert not error
    assert sum(blocks) == 3 * B + 2 * 16 * B
    assert max(blocks) < 1 << 31


def test_too_many_samples_are_refused(emulation: Emulation) -> None:
    error, blocks = dry_launches(emulation, 1 << 31, [1])
    assert error == 1
    assert blocks == []


def test_structures_agree(emulation: Emulation) -> None:
    assert emulation.library.kernels_pair_bytes() == ctypes.sizeof(CPair)
