"""A chunk of pairs on Triton, forward and backward, against the plain steps of one pair in fp64.

Runs on the GPU if there is one, and otherwise interpreted on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from pair_problems import EVEN, MEETINGS, RAGGED, Meeting, PairProblem, check_pairs, moved_parameters
from served import MISSING, device_of
from torch import Tensor

from semckd_kernels.stages.projection import Projection

if "triton" in MISSING:
    pytest.skip(f"triton does not serve here: {MISSING['triton']}", allow_module_level=True)

from semckd_kernels.backends.triton.criterion import backend as criterion_stages
from semckd_kernels.backends.triton.criterion import stage_launches
from semckd_kernels.backends.triton.criterion.backend import TritonBackend, divide
from semckd_kernels.backends.triton.criterion.config import split_pixels

DEVICE = device_of("triton")
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@pytest.fixture(autouse=True)
def _exact_fp32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has written is NaN, or as bytes a number of which sums go wrong."""

    def poison(make):  # type: ignore[no-untyped-def]
        def empty(*args, **kwargs):  # type: ignore[no-untyped-def]
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(0x7F)

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


def triton(dtype: torch.dtype, need_grad: bool = True) -> TritonBackend:
    return TritonBackend(torch.device(DEVICE), dtype, need_grad)


Problem = partial(PairProblem, device=DEVICE)


def check(problem: PairProblem, need_grad: bool = True, only: str = "") -> dict[str, Tensor]:
    return check_pairs(problem, triton(problem.dtype, need_grad), need_grad, only)


@pytest.mark.parametrize("meetings", MEETINGS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_chunk(meetings: str, dtype: torch.dtype) -> None:
    # a BatchNorm of the two values of two samples in one pixel would multiply rounding errors
    check(Problem(MEETINGS[meetings], dtype, batch=3))


def test_more_channels_than_a_tile() -> None:
    check(Problem([Meeting(2, 3, 66, (66,))], F32, batch=2))


# neither, both, and each of a pair's two BatchNorms with statistics of the batch
@pytest.mark.parametrize("flags", [(False,), (True, False, False, True, False)], ids=["running", "mixed"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_running_statistics(flags: tuple[bool, ...], dtype: torch.dtype) -> None:
    check(Problem(RAGGED, dtype, batch_statistics=flags))


def test_without_gradients() -> None:
    problem = Problem(RAGGED, F32)
    value = check(problem, need_grad=False)
    expected = problem.run(triton(F32))
    for name, x in value.items():
        assert torch.equal(x, expected[name]), name


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
def test_parameters_of_another_type(dtype: torch.dtype) -> None:
    value = check(Problem(EVEN[1:], BF16 if dtype == F64 else dtype, parameter_dtype=dtype))
    kept = F32 if dtype == F16 else dtype
    assert all(x.dtype == kept for name, x in value.items() if name.startswith(("d_w", "d_g", "d_b")))


def test_gradients_lie_as_their_parameters() -> None:
    problem = Problem(EVEN, BF16, parameter_dtype=F32)
    value = problem.run(triton(BF16))
    for q, (_, parameters, _) in enumerate(problem.pairs):
        for field, parameter in zip(Projection._fields, parameters, strict=True):
            assert value[f"d_{field} {q}"].stride() == parameter.stride(), (field, q)


@pytest.mark.parametrize("offset", [1, 4])
def test_parameters_at_any_address(offset: int) -> None:
    """As views into one buffer, whose beginnings are multiples of nothing, and with strides of their own."""
    problem = Problem(EVEN, F32)
    expected = problem.run(triton(F32))
    moved_parameters(problem, offset)
    value = problem.run(triton(F32))
    for name, x in value.items():
        assert torch.equal(x, expected[name]), name


def test_repeats_bitwise() -> None:
    # many programs where they race, few where they are interpreted one after the other
    meetings = RAGGED if DEVICE == "cpu" else [Meeting(33, 31, 40, (72, 24)), Meeting(16, 16, 64, (64,))]
    problem = Problem(meetings, BF16)
    first, second = (problem.run(triton(BF16)) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_budget_of_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair in a chunk of its own: a group's d_x is added to, chunk by chunk."""
    problem = Problem([Meeting(3, 3, 6, (5, 3, 4)), Meeting(2, 2, 8, (4,))], F32)
    monkeypatch.setenv("SEMCKD_CHUNK_MIB", "0")
    chunks = list(triton(F32).chunks(problem.groups()))
    assert [[len(group.pairs) for group in chunk] for chunk in chunks] == [[1]] * 4
    assert chunks[0][0].d_x is chunks[1][0].d_x is chunks[2][0].d_x is not chunks[3][0].d_x
    check(problem)


def test_budget_of_some_pairs() -> None:
    groups = Problem([Meeting(4, 4, 8, (8, 8, 8)), Meeting(4, 4, 8, (8, 8))], F32).groups()
    each = 7 * 3 * 16 * 8 * 4
    shapes = [[[len(g.pairs) for g in chunk] for chunk in divide(groups, budget * each)] for budget in (1, 2, 4, 5)]
    assert shapes == [[[1]] * 5, [[2], [1, 1], [1]], [[3, 1], [1]], [[3, 2]]]


def test_budget_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCKD_CHUNK_MIB", "a lot")
    with pytest.raises(ValueError, match="SEMCKD_CHUNK_MIB must be a whole number of MiB, got 'a lot'"):
        criterion_stages.chunk_bytes()


def test_large_mean() -> None:
    problem = Problem(EVEN[:1], F32)
    problem.x[0] = 3 + 0.003 * problem.x[0]
    check(problem)


def test_statistics_of_a_large_mean() -> None:
    # a convolution that copies its input: all of its result's variance is the input's, at 1000 deviations from 0
    problem = Problem([Meeting(9, 8, 16, (8,))], F32)
    _, parameters, _ = problem.pairs[0]
    weight2 = torch.zeros_like(parameters.weight2)
    weight2[range(16), range(16), 1, 1] = 1
    problem.pairs[0][1] = parameters._replace(
        weight2=weight2, gamma1=torch.full_like(parameters.gamma1, 0.003), beta1=torch.full_like(parameters.beta1, 3)
    )
    check(problem, only="statistics")


def test_sums_beyond_the_range_of_fp16() -> None:
    # 8192 pixels whose gradients add up
    problem = Problem([Meeting(64, 64, 2, (2,))], F16, batch=2, batch_statistics=(False,))
    y, parameters, _ = problem.pairs[0]
    problem.pairs[0][0] = torch.full_like(y, -16)
    problem.pairs[0][1] = parameters._replace(weight3=parameters.weight3.abs(), beta2=parameters.beta2.abs() + 1)
    value = check(problem)
    assert all(x.isfinite().all() for x in value.values())


def test_sums_of_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    # splits and row tiles in groups of two, whose sums are added up by the last of them
    monkeypatch.setattr(stage_launches, "SUM_GROUP", 2)
    monkeypatch.setattr("semckd_kernels.backends.triton.criterion.config.MIN_STEPS", 1)
    check(Problem([Meeting(9, 16, 3, (3,)), Meeting(13, 13, 4, (4,))], F32))


def nan_samples(x: Tensor) -> list[int]:
    return x.isnan().flatten(1).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nan_reaches_what_it_should(dtype: torch.dtype) -> None:
    # of one sample, in one of two inputs, without statistics that would spread it
    problem = Problem([Meeting(4, 3, 8, (8,)), Meeting(5, 3, 9, (4, 6))], dtype, batch_statistics=(False,))
    problem.x[1][1, 2, 1, 3] = float("nan")
    value = problem.run(triton(dtype))
    assert value["mse"].isnan().nonzero().tolist() == [[1, 0, 1], [1, 0, 2]]
    assert nan_samples(value["d_x 0"]) == []
    assert nan_samples(value["d_x 1"]) == [1]
    for name, x in value.items():
        if name.startswith("d_weight"):
            assert bool(x.isnan().any()) == (not name.endswith(" 0")), name

    problem = Problem([Meeting(4, 3, 8, (8,))], dtype)
    problem.pairs[0][0][2, 1, 1, 1] = float("nan")
    value = problem.run(triton(dtype))
    assert value["mse"].isnan().nonzero().tolist() == [[2, 0, 0]]
    assert value["d_weight3 0"].isnan().any()


def test_splits_of_a_launch() -> None:
    for pixels, channels in ((2**30, 4096), (2**20, 8192), (1, 64), (2**31 - 1, 64)):
        work = [(pixels, 10**3, channels), (100, 4, 8)]
        for (_, _, wider), split in zip(work, split_pixels(work, 32), strict=True):
            assert split % 32 == 0
            # offsets inside a split are 32-bit
            assert split * wider < 2**31
    # programs of all sums get as much to do, and together they are as many as are wanted
    assert split_pixels([(65536, 2, 64), (16384, 4, 128)], 64, programs=192) == [1024, 1024]
