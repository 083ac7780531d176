"""The Winograd convolution of the CPU, forward and backward, against a direct one in fp64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cpu_stages import CpuStages, Workspace
from plain_algebra import BackwardCoefficients
from plain_stages import PlainStages, as_map, rows
from tolerances import FLOOR, assert_close, relative_error
from torch import Tensor

import semckd_kernels as sk

if not sk.available_backends()["cpu"].available:
    pytest.skip("the compiled CPU library is missing", allow_module_level=True)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# B, h, w, K: channels that fill no panel, maps smaller than a tile, tiles that hang over one edge or both; from 128
# channels on, tiles of 4x4 where they save products
SHAPES = (
    (3, 5, 7, 3),
    (1, 1, 1, 24),
    (3, 2, 2, 40),
    (1, 9, 1, 65),
    (3, 4, 4, 65),
    (1, 7, 12, 33),
    (16, 15, 14, 32),
    (3, 2, 2, 130),
    (3, 4, 4, 128),
    (2, 9, 7, 130),
    (8, 15, 14, 160),
)
every_level = pytest.mark.every_level
NAMES = ("z", "mean", "variance", "d_h1", "d_weight")


class Problem(NamedTuple):
    h: Tensor
    weight: Tensor
    z: Tensor
    d_h2: Tensor
    coefficients: BackwardCoefficients

    def double(self) -> Problem:
        coefficients = BackwardCoefficients(*(x.double() for x in self.coefficients))
        return Problem(self.h.double(), self.weight.double(), self.z.double(), self.d_h2.double(), coefficients)


def make_problem(shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(0)
    K = shape[-1]
    acc_dtype = torch.promote_types(dtype, torch.float32)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    weight = (normal(K, K, 3, 3) / (9 * K) ** 0.5).to(acc_dtype)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    # away from zero on average, as activations are: the variance has something to cancel
    z, d_h2 = (normal(*shape) + 1).to(dtype), normal(*shape).to(dtype)
    coefficients = BackwardCoefficients(*(normal(K).to(acc_dtype) for _ in range(3)))
    return Problem(normal(*shape).relu().to(dtype), weight, z, d_h2, coefficients)


def poisoned_workspace(h: Tensor) -> Workspace:
    workspace = Workspace()
    # as many requests as forward and backward make, each large enough for what they ask; bytes that are NaN in any type
    nbytes = max(h.nbytes, *(torch.ops.semckd_cpu.winograd_scratch(h, backward) for backward in (False, True)))
    for _ in range(4):
        workspace.empty((nbytes,), torch.uint8).fill_(255)
    workspace.reset()
    return workspace


def compute(problem: Problem) -> tuple[Tensor, ...]:
    stages = CpuStages(poisoned_workspace(problem.h))
    z, mean, variance = stages.conv3x3(problem.h, problem.weight, True)
    assert mean is not None
    assert variance is not None
    gradients = stages.conv3x3_backward(problem.h, problem.weight, problem.z, problem.d_h2, problem.coefficients)
    return tuple(x.clone() for x in (z, mean, variance, *gradients))


def direct(problem: Problem) -> tuple[Tensor, ...]:
    """The vendor's convolution in the maps' type, and what is computed beside it in the accumulation type."""
    dtype, acc_dtype = problem.h.dtype, problem.weight.dtype
    h, weight = problem.h.permute(0, 3, 1, 2), problem.weight.to(dtype)
    z = F.conv2d(h, weight, padding=1).permute(0, 2, 3, 1)
    a, b, c = problem.coefficients
    d_z = as_map((a * rows(problem.d_h2) + b * rows(problem.z) + c).view(z.shape)).to(dtype)
    d_h1, d_weight, _ = torch.ops.aten.convolution_backward(
        d_z, h, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return z, rows(z).mean(0), rows(z).var(0, unbiased=False), d_h1.permute(0, 2, 3, 1), d_weight.to(acc_dtype)


def exact(problem: Problem) -> tuple[Tensor, ...]:
    plain, exact = PlainStages(), problem.double()
    z, mean, variance = plain.conv3x3(exact.h, exact.weight, True)
    assert mean is not None
    assert variance is not None
    return z, mean, variance, *plain.conv3x3_backward(exact.h, exact.weight, exact.z, exact.d_h2, exact.coefficients)


@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_against_direct_convolution(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    if dtype == torch.float16 and shape[-1] == 160:
        # torch's own gradient takes eight seconds; how many tiles there are is the other types'
        shape = (2, *shape[1:])
    problem = make_problem(shape, dtype, channels_last=shape[0] == 3)
    for name, value, eager, reference in zip(NAMES, compute(problem), direct(problem), exact(problem), strict=True):
        assert_close(value, eager, reference, name)


# from 256 channels on, U comes in pieces
@every_level
@pytest.mark.parametrize("channels", [32, 64, 128, 256, 512, 576])
def test_as_exact_as_the_vendors_convolution(channels: int) -> None:
    """In the layout of the maps, give or take a rounding error; or within a third of what a gradient is allowed.

    Vendors' kernels, and with them the first limit, differ from processor to processor.
    """
    problem = make_problem((8, 8, 8, channels), torch.float32, channels_last=True)
    for name, value, vendor, reference in zip(NAMES, compute(problem), direct(problem), exact(problem), strict=True):
        error = relative_error(value, reference)
        limit = max(1.2 * relative_error(vendor, reference) + 1e-7, FLOOR["float32"] / 3)
        assert error <= limit, f"{name}: {error:.2e}, allowed {limit:.2e}"


def test_gradient_has_the_strides_of_the_weight() -> None:
    shape = (2, 3, 5, 8)
    contiguous = make_problem(shape, torch.float32)
    for weight in (
        contiguous.weight.contiguous(memory_format=torch.channels_last),
        contiguous.weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    ):
        results = compute(contiguous._replace(weight=weight))
        assert results[-1].stride() == weight.stride()
        for name, value, expected in zip(NAMES, results, compute(contiguous), strict=True):
            assert torch.equal(value, expected), name


def test_weight_of_another_type() -> None:
    problem = make_problem((2, 4, 4, 16), torch.float32)
    halved = problem._replace(weight=problem.weight.half())
    widened = problem._replace(weight=problem.weight.half().float())
    for value, expected in zip(compute(halved), compute(widened), strict=True):
        assert torch.equal(value, expected)


# other types differ in how they are read and written, which the first test has
@every_level(dtype=[torch.float32])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    "shape",
    # few tiles go by steps, in pieces of 160 and 32 channels, on up to three threads, and no longer on four
    [(20, 16, 16, 32), (64, 32, 32, 8), (12, 16, 16, 128), (3, 4, 4, 192), (50, 5, 7, 224)],
    ids=["shared groups", "groups of a thread's own", "large tiles", "few tiles", "bands of tiles"],
)
def test_same_bits_every_time_for_any_number_of_threads(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    # several chunks of tiles and several groups of the weight gradient
    problem = make_problem(shape, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(compute(problem))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for name, value, expected in zip(NAMES, result, results[0], strict=True):
            assert torch.equal(value, expected), name
    for name, value, eager, reference in zip(NAMES, results[0], direct(problem), exact(problem), strict=True):
        assert_close(value, eager, reference, name)


@every_level
def test_without_statistics() -> None:
    problem = make_problem((2, 4, 4, 16), torch.float32)
    z, mean, variance = CpuStages(poisoned_workspace(problem.h)).conv3x3(problem.h, problem.weight, False)
    assert mean is None
    assert variance is None
    assert torch.equal(z, compute(problem)[0])


@every_level
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_results(value: float) -> None:
    problem = make_problem((2, 6, 6, 20), torch.float32)
    h, d_h2 = problem.h.clone(), problem.d_h2.clone()
    h[1, 3, 2, 5] = value
    d_h2[1, 3, 2, 5] = value
    z, mean, variance, _, d_weight = compute(problem._replace(h=h))
    assert not z[1, 2:5, 1:4].isfinite().any()
    assert z[0].isfinite().all()
    assert not mean.isfinite().any()
    assert not variance.isfinite().any()
    assert not d_weight[:, 5].isfinite().any()
    _, _, _, d_h1, d_weight = compute(problem._replace(d_h2=d_h2))
    assert not d_h1[1, 2:5, 1:4].isfinite().any()
    assert d_h1[0].isfinite().all()
    assert not d_weight[5].isfinite().any()


def test_empty_batch() -> None:
    z, _, _, d_h1, d_weight = compute(make_problem((0, 4, 4, 8), torch.float32))
    assert z.shape == d_h1.shape == (0, 4, 4, 8)
    assert torch.equal(d_weight, torch.zeros(8, 8, 3, 3))
