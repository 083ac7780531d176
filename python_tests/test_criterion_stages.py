"""A chunk of pairs on Triton, forward and backward, against the plain steps of one pair in fp64.

Runs on the GPU if there is one, and otherwise interpreted on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import interpreted_bf16  # noqa: F401
import pytest
import torch
from plain_stages import EagerStages, PlainStages
from served import MISSING, device_of
from tolerances import assert_close_on_average
from torch import Tensor

from semckd_kernels.stages.backend import Backend, Group, InputGradient, Norm, Pair, PairResult
from semckd_kernels.stages.pair_by_pair import PairByPair
from semckd_kernels.stages.projection import Projection
from semckd_kernels.stages.workspace import Workspace

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


class Meeting(NamedTuple):
    """A student layer's map, and the channels of the teacher layers that it meets there."""

    height: int
    width: int
    c: int
    teachers: tuple[int, ...]


class Problem:
    """Random pairs, which backends work off; results of all are the gradients of the same loss."""

    def __init__(
        self,
        meetings: Sequence[Meeting],
        dtype: torch.dtype,
        batch: int = 3,
        batch_statistics: Sequence[bool] = (True,),
        parameter_dtype: torch.dtype | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch, self.dtype, self.meetings = batch, dtype, meetings
        acc = torch.promote_types(dtype, F32)
        count = sum(len(m.teachers) for m in meetings)

        def normal(*size: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
            return (
                (torch.randn(size, generator=generator, dtype=F64) * scale + shift)
                .to(parameter_dtype or acc)
                .to(DEVICE)
            )

        def a_map(m: Meeting, channels: int) -> Tensor:
            return normal(batch, m.height, m.width, channels, shift=0.5).to(dtype)

        self.alpha = (torch.rand(batch, 1, count, generator=generator, dtype=F64) + 0.1).to(acc).to(DEVICE)
        self.x, self.pairs = [], []
        flags = [bool(batch_statistics[n % len(batch_statistics)]) for n in range(2 * count)]
        for m in meetings:
            self.x.append(a_map(m, m.c))
            for C in m.teachers:
                q, k = len(self.pairs), 2 * C
                weight2 = normal(k, k, 3, 3, scale=(9 * k) ** -0.5)
                parameters = Projection(
                    normal(k, m.c, 1, 1, scale=m.c**-0.5),
                    normal(k, scale=0.3, shift=1),
                    normal(k, scale=0.3),
                    # some in channels_last, as a user's model may be
                    weight2.to(memory_format=torch.channels_last) if q % 2 or k > 64 else weight2,
                    normal(k, scale=0.3, shift=1),
                    normal(k, scale=0.3),
                    normal(C, k, 1, 1, scale=k**-0.5),
                )
                norms = [
                    Norm(normal(k, scale=0.3), normal(k).abs() + 0.5, 1e-5, flag) for flag in flags[2 * q : 2 * q + 2]
                ]
                self.pairs.append([a_map(m, C), parameters, norms])

    def groups(self, dtype: torch.dtype | None = None, need_grad: bool = True) -> list[Group]:
        """The same numbers as a backend takes them, in another type where one is given."""
        groups: list[Group] = []
        rest = iter(self.pairs)
        q = 0
        waits = self.dtype == F16
        for n, m in enumerate(self.meetings):
            pairs = []
            for _ in m.teachers:
                y, parameters, norms = next(rest)
                if dtype:
                    y, parameters = y.to(dtype), Projection(*(p.to(dtype) for p in parameters))
                    norms = [Norm(a.to(dtype), b.to(dtype), eps, flag) for a, b, eps, flag in norms]
                factor = 2 / (y[0].numel() * self.batch)
                pairs.append(Pair(q, y, parameters, tuple(norms), *((1.0, factor) if waits else (factor, 1.0))))
                q += 1
            x = self.x[n].to(dtype) if dtype else self.x[n]
            d_x = InputGradient() if need_grad else None
            groups.append(Group(n, (m.height, m.width), x, pairs, max(pair.outside for pair in pairs), d_x))
        return groups

    def run(self, backend: Backend, dtype: torch.dtype | None = None, need_grad: bool = True) -> dict[str, Tensor]:
        """Everything that all pairs give, by name."""
        groups = self.groups(dtype, need_grad)
        alpha = self.alpha.to(torch.promote_types(dtype or self.dtype, F32))
        mse = torch.full_like(alpha, float("nan"))
        results: list[PairResult] = []
        for chunk in backend.chunks(groups):
            results += backend.run_chunk(chunk, alpha, mse)
        named = {"mse": mse}
        for group in groups:
            if group.d_x is not None:
                assert group.d_x.rows is not None
                named[f"d_x {group.i}"] = group.d_x.rows * group.later
        for q, result in enumerate(results):
            named |= {f"statistics {q}.{n}": x for n, x in enumerate(result.statistics)}
            for field, x in zip(Projection._fields, result.gradients, strict=False):
                named[f"d_{field} {q}"] = x
        return named


def triton(dtype: torch.dtype, need_grad: bool = True) -> TritonBackend:
    return TritonBackend(torch.device(DEVICE), dtype, need_grad)


def plain(stages: PlainStages, dtype: torch.dtype, need_grad: bool = True) -> PairByPair:
    acc = torch.promote_types(dtype, F32)
    return PairByPair(stages, Workspace(torch.device(DEVICE)), acc, need_grad)  # type: ignore[arg-type]


def check(problem: Problem, need_grad: bool = True, only: str = "") -> dict[str, Tensor]:
    value = problem.run(triton(problem.dtype, need_grad), None, need_grad)
    eager = problem.run(plain(EagerStages(problem.dtype), problem.dtype, need_grad), None, need_grad)
    exact = problem.run(plain(PlainStages(), F64, need_grad), F64, need_grad)
    assert value.keys() == exact.keys()
    for kind in {name.split()[0] for name in exact if name.startswith(only)}:
        # a ReLU that flips, or one value's rounding, decides about a single one
        names = [name for name in exact if name.split()[0] == kind]
        assert_close_on_average(*([side[name] for name in names] for side in (value, eager, exact)), kind)
    return value


# one pixel, channels that fill no vector, several pairs of one input
RAGGED = [Meeting(1, 1, 3, (2,)), Meeting(5, 7, 10, (9, 3))]
# channels that fill vectors, more pixels than a tile
EVEN = [Meeting(9, 8, 16, (8, 8)), Meeting(3, 4, 24, (8,))]
MEETINGS = {"ragged": RAGGED, "even": EVEN}


@pytest.mark.parametrize("meetings", MEETINGS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_chunk(meetings: str, dtype: torch.dtype) -> None:
    # products in fp64 are emulated, and slow when interpreted
    check(Problem(MEETINGS[meetings], dtype, batch=3 if dtype != F64 else 2))


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
    for pair in problem.pairs:
        parameters = []
        for p in pair[1]:
            buffer = torch.full((p.numel() + offset,), float("nan"), device=DEVICE)
            view = buffer[offset:].as_strided(p.shape, p.stride())
            parameters.append(view.copy_(p))
        # every other row and column of a larger matrix
        larger = torch.full([2 * n for n in parameters[0].shape[:2]], float("nan"), device=DEVICE)
        larger[::2, ::2] = parameters[0][:, :, 0, 0]
        parameters[0] = larger[::2, ::2, None, None]
        pair[1] = Projection(*parameters)
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
