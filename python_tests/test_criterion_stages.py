"""The criterion's stages of each backend, one by one, against ``plain_stages.py`` in fp64.

Runs on the GPU if there is one, and otherwise interpreted on the CPU where a backend needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import interpreted_bf16  # noqa: F401
import pytest
import torch
from plain_stages import EagerStages, PlainStages
from served import MISSING, device_of
from tolerances import assert_close
from torch import Tensor

from semckd_kernels.criterion.stages import Stages

# the backends' stages: module and class
STAGES = {
    "triton": ("semckd_kernels._triton.criterion_stages", "TritonStages"),
}

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


class Subject(NamedTuple):
    """Stages under test, and where."""

    name: str
    stages: Stages
    device: str


def _subject(name: str) -> Subject:
    module, cls = STAGES[name]
    return Subject(name, getattr(importlib.import_module(module), cls)(), device_of(name))


@pytest.fixture(params=[name for name in STAGES if name not in MISSING], scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return _subject(request.param)


@pytest.fixture(autouse=True)
def _exact_fp32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Shape(NamedTuple):
    batch: int
    height: int
    width: int
    c: int  # the student's channels
    C: int  # the teacher's channels


# one pixel; channels that fill no vector; more pixels than a tile; more channels than a tile; more than one split
SHAPES = [Shape(1, 1, 1, 3, 2), Shape(3, 5, 7, 24, 9), Shape(2, 17, 9, 40, 72)]
# of a single pixel's roundings none averages out, so that luck would judge 16-bit types; products in fp64 are emulated,
# and slow when interpreted
CASES = [
    *((F32, shape) for shape in SHAPES),
    *((dtype, shape) for dtype in (BF16, F16) for shape in SHAPES[1:]),
    *((F64, shape) for shape in SHAPES[:2]),
]
cases = pytest.mark.parametrize(
    ("dtype", "shape"), CASES, ids=[f"{str(dtype)[6:]}-{'x'.join(map(str, shape))}" for dtype, shape in CASES]
)


class Problem:
    """Random arguments of all stages for one pair."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = dtype, device
        self.wide_dtype = torch.promote_types(dtype, F32)
        c, k = shape.c, 2 * shape.C

        def wide(*size: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(size, generator=generator, dtype=F64) * scale).to(self.wide_dtype).to(device)

        def a_map(channels: int) -> Tensor:
            return wide(*shape[:3], channels).to(dtype)

        self.x, self.y, self.z, self.d_h = a_map(c) + 1, a_map(shape.C), a_map(k), a_map(k)
        self.h = torch.relu(a_map(k))
        self.weight1, self.bias1 = wide(k, c, scale=c**-0.5), wide(k)
        # a parameter in channels_last, as a user's model may be
        self.weight2 = wide(k, k, 3, 3, scale=(9 * k) ** -0.5).to(memory_format=torch.channels_last)
        self.mean, self.scale, self.beta = wide(k), wide(k), wide(k)
        self.scale[0] = self.beta[0] = 0
        self.weight3, self.coef = wide(shape.C, k, scale=k**-0.5), wide(shape.batch).abs()
        self.a, self.b, self.c = wide(k), wide(k, scale=0.1), wide(k, scale=0.1)
        self.square, self.bias_c, self.d_x = wide(c, c, scale=c**-0.5), wide(c), wide(*shape[:3], c)

    def exact(self) -> Problem:
        """The same numbers in fp64."""
        result = object.__new__(Problem)
        tensors = {name: value.double() for name, value in vars(self).items() if isinstance(value, Tensor)}
        vars(result).update({**tensors, "dtype": F64, "wide_dtype": F64, "device": self.device})
        return result

    def poisoned(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full_like(like, float("nan"), dtype=dtype or self.dtype)


Results = dict[str, Tensor]


def moments(stages: Stages, p: Problem) -> Results:
    mean, covariance = stages.moments(p.x)
    return {"mean": mean, "covariance": covariance}


def linear_relu(stages: Stages, p: Problem) -> Results:
    h = p.poisoned(p.h)
    stages.linear_relu(p.x, p.weight1, p.bias1, h)
    return {"h": h}


def conv3x3(stages: Stages, p: Problem) -> Results:
    z, mean, variance = stages.conv3x3(p.h, p.weight2, True)
    assert mean is not None
    assert variance is not None
    alone, none, nothing = stages.conv3x3(p.h, p.weight2, False)
    assert none is nothing is None
    assert torch.allclose(alone, z, rtol=0, atol=0, equal_nan=True)
    assert z.is_contiguous()
    return {"z": z, "mean": mean, "variance": variance}


def end(stages: Stages, p: Problem) -> Results:
    d_h = p.poisoned(p.z)
    result = stages.end(p.z, p.mean, p.scale, p.beta, p.weight3, p.y, p.coef, d_h)
    return {name: value for name, value in result._asdict().items() if value is not None} | {"d_h": d_h}


def end_error_only(stages: Stages, p: Problem) -> Results:
    error, *rest = stages.end(p.z, p.mean, p.scale, p.beta, p.weight3, p.y, None, None)
    assert rest == [None] * 3
    return {"squared_error": error}


def conv3x3_backward(stages: Stages, p: Problem) -> Results:
    d_h1, d_weight = stages.conv3x3_backward(p.h, p.weight2, p.z, p.d_h.clone(), p.a, p.b, p.c)
    assert d_h1.is_contiguous()
    assert d_weight.stride() == p.weight2.stride()
    return {"d_h1": d_h1, "d_weight": d_weight}


def linear_relu_backward(stages: Stages, p: Problem) -> Results:
    d_x = p.poisoned(p.d_x, p.wide_dtype)
    d_weight, d_bias = stages.linear_relu_backward(p.x, p.h, p.d_h.clone(), p.weight1, d_x, False)
    return {"d_weight": d_weight, "d_bias": d_bias, "d_x": d_x}


def linear_relu_backward_accumulated(stages: Stages, p: Problem) -> Results:
    d_x = p.d_x.clone()
    stages.linear_relu_backward(p.x, p.h, p.d_h.clone(), p.weight1, d_x, True)
    return {"d_x": d_x}


def linear_add_(stages: Stages, p: Problem) -> Results:
    d_x = p.d_x.clone()
    stages.linear_add_(p.x, p.square, p.bias_c, d_x)
    return {"d_x": d_x}


EACH = [
    moments,
    linear_relu,
    conv3x3,
    end,
    end_error_only,
    conv3x3_backward,
    linear_relu_backward,
    linear_relu_backward_accumulated,
    linear_add_,
]
each_stage = pytest.mark.parametrize("stage", EACH, ids=lambda stage: stage.__name__)
Stage = Callable[[Stages, Problem], Results]


def check(subject: Subject, stage: Stage, problem: Problem) -> None:
    value = stage(subject.stages, problem)
    eager, exact = stage(EagerStages(problem.dtype), problem), stage(PlainStages(), problem.exact())
    assert value.keys() == exact.keys()
    for name in exact:
        assert_close(value[name], eager[name], exact[name], f"{stage.__name__}: {name}")


@each_stage
@cases
def test_stage(subject: Subject, stage: Stage, dtype: torch.dtype, shape: Shape) -> None:
    check(subject, stage, Problem(shape, dtype, subject.device))


@each_stage
def test_repeats_bitwise(subject: Subject, stage: Stage) -> None:
    # many programs where they race, few where they are interpreted one after the other
    problem = Problem(SHAPES[1] if subject.device == "cpu" else Shape(16, 33, 31, 40, 72), BF16, subject.device)
    first, second = stage(subject.stages, problem), stage(subject.stages, problem)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_moments_of_a_large_mean(subject: Subject) -> None:
    problem = Problem(SHAPES[2], F32, subject.device)
    problem.x = 3 + 0.003 * problem.x
    check(subject, moments, problem)


def test_statistics_of_a_large_mean(subject: Subject) -> None:
    # a convolution that copies its input: all of the result's variance is the input's, at 1000 deviations from 0
    problem = Problem(Shape(2, 19, 23, 3, 10), F32, subject.device)
    problem.h = 3 + 0.003 * problem.h
    k = problem.h.shape[-1]
    problem.weight2 = torch.zeros_like(problem.weight2)
    problem.weight2[range(k), range(k), 1, 1] = 1
    check(subject, conv3x3, problem)


def test_sums_beyond_the_range_of_fp16(subject: Subject) -> None:
    problem = Problem(Shape(2, 64, 64, 3, 4), F16, subject.device)
    # 8192 pixels that all add 16
    problem.h, problem.d_h = torch.full_like(problem.h, 4), torch.full_like(problem.d_h, 4)
    problem.a, problem.b, problem.c = (torch.full_like(problem.a, value) for value in (1.0, 0.0, 0.0))
    check(subject, conv3x3_backward, problem)


def test_sums_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" in MISSING:
        pytest.skip(f"triton does not serve here: {MISSING['triton']}")
    subject = _subject("triton")
    # 20 row tiles are 7 groups, those 3, and those one
    monkeypatch.setattr("semckd_kernels._triton.criterion_stages.SUM_GROUP", 3)
    check(subject, end, Problem(Shape(5, 16, 16, 3, 5), F32, subject.device))


def nan_pixels(x: Tensor) -> list[int]:
    return x.isnan().flatten(0, 2).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nan_reaches_what_it_should(subject: Subject, dtype: torch.dtype) -> None:
    # of sample 1, pixel 40 of 105
    at = (1, 0, 5, 3)

    def with_nan(name: str, *also: str) -> Problem:
        problem = Problem(SHAPES[1], dtype, subject.device)
        for tensor in (name, *also):
            getattr(problem, tensor)[at] = float("nan")
        return problem

    mean = moments(subject.stages, with_nan("x"))["mean"]
    assert mean.isnan().nonzero().flatten().tolist() == [3]

    assert nan_pixels(linear_relu(subject.stages, with_nan("x"))["h"]) == [40]
    assert nan_pixels(linear_add_(subject.stages, with_nan("x"))["d_x"]) == [40]

    got = conv3x3(subject.stages, with_nan("h"))
    assert nan_pixels(got["z"]) == [p for p in range(35, 70) if p in (39, 40, 41, 46, 47, 48) and p % 7 >= 4]
    assert got["mean"].isnan().all()
    assert got["variance"].isnan().all()

    for name in ("z", "y"):
        got = end(subject.stages, with_nan(name))
        assert got["squared_error"].isnan().tolist() == [False, True, False], name
        assert nan_pixels(got["d_h"]) == [40], name
        assert got["d_weight"].isnan().any(), name
        assert got["sum_d"].isnan().any(), name
        assert got["sum_dz"].isnan().any(), name

    assert conv3x3_backward(subject.stages, with_nan("d_h"))["d_weight"].isnan().any()

    problem = with_nan("d_h")
    problem.h[at] = 1
    got = linear_relu_backward(subject.stages, problem)
    assert nan_pixels(got["d_x"]) == [40]
    assert got["d_bias"].isnan().nonzero().flatten().tolist() == [3]
    assert got["d_weight"].isnan().any(1).nonzero().flatten().tolist() == [3]


# conv3x3 as it is tested compares two results, and so waits for the device
@pytest.mark.skipif(device_of("triton") != "cuda" or "triton" in MISSING, reason="needs a GPU")
@pytest.mark.parametrize("stage", [stage for stage in EACH if stage is not conv3x3], ids=lambda stage: stage.__name__)
def test_cuda_graph(stage: Stage) -> None:
    subject = _subject("triton")
    problem = Problem(SHAPES[2], BF16, subject.device)
    # compiles and warms up, on another stream than the capture's
    with torch.cuda.stream(torch.cuda.Stream()):
        eager = stage(subject.stages, problem)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = stage(subject.stages, problem)
    graph.replay()
    for name, value in captured.items():
        assert torch.equal(value, eager[name]), name


def test_offsets_within_a_split_are_32_bit() -> None:
    config = pytest.importorskip("semckd_kernels._triton.criterion_config")
    for pixels, channels in ((2**30, 4096), (2**20, 8192), (1, 64), (2**31 - 1, 64)):
        split = config.split_pixels(pixels, 10**6, channels, 32)
        assert split % 32 == 0
        assert split * channels < 2**31
