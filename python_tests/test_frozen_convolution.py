"""The Winograd convolution of weights that never change, against torch's in fp64; and where it serves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import FLOOR, assert_close, relative_error
from torch import Tensor, nn

import semckd_kernels as sk

if not sk.available_backends()["cpu"].available:
    pytest.skip("the compiled CPU library is missing", allow_module_level=True)

from semckd_kernels.backends.cpu import frozen

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# B, h, w, channels in and out: channels that fill no step, tiles that hang over edges, few tiles and many
SHAPES = (
    (3, 5, 7, 3, 5),
    (1, 1, 1, 24, 40),
    (2, 9, 7, 65, 32),
    (5, 8, 8, 32, 130),
    (2, 4, 12, 130, 64),
    (16, 15, 14, 33, 33),
)
every_level = pytest.mark.every_level
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def make_problem(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> Problem:
    """Map, weight, bias and what is added, in channels_last order."""
    B, h, w, channels_in, out = shape
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x, residual = normal(B, channels_in, h, w).relu(), normal(B, out, h, w)
    weight = (normal(out, channels_in, 3, 3) / (9 * channels_in) ** 0.5).to(wide)
    x, weight, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, residual))
    return x.to(dtype), weight, normal(out).to(wide), residual.to(dtype)


def ours(problem: Problem, bias: bool, residual: bool, relu: bool) -> Tensor:
    x, weight, b, added = problem
    return frozen.convolve(
        x, frozen.transform(weight), len(weight), b if bias else None, added if residual else None, relu
    )


def direct(problem: Problem, bias: bool, residual: bool, relu: bool) -> Tensor:
    x, weight, b, added = problem
    out = F.conv2d(x, weight.to(x.dtype), b.to(x.dtype) if bias else None, padding=1)
    out = out + added if residual else out
    return out.relu() if relu else out


def double(problem: Problem) -> Problem:
    x, weight, bias, residual = problem
    return x.double(), weight.double(), bias.double(), residual.double()


@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_against_direct_convolution(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    problem = make_problem(shape, dtype)
    for options in ((True, True, True), (True, False, True), (False, True, False), (False, False, False)):
        found = ours(problem, *options)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert_close(found, direct(problem, *options), direct(double(problem), *options), str(options))


@every_level
@pytest.mark.parametrize("channels", [32, 64, 256])
def test_as_exact_as_a_forward_pass_asks(channels: int) -> None:
    """A quarter of the multiplications cost at most a rounding error or two more than the vendor's convolution."""
    problem = make_problem((4, 8, 8, channels, channels), torch.float32)
    exact = direct(double(problem), True, False, False)
    vendor = relative_error(direct(problem, True, False, False), exact)
    error = relative_error(ours(problem, True, False, False), exact)
    assert error <= max(1.2 * vendor + 2e-7, FLOOR["float32"] / 5), f"{error:.2e}, the vendor's {vendor:.2e}"


@every_level(shape=[(3, 24, 24, 32, 64)])
@pytest.mark.parametrize(
    "shape", [(3, 24, 24, 32, 64), (2, 4, 4, 64, 192), (64, 16, 8, 32, 32)], ids=["some", "few tiles", "many"]
)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int, int, int, int]) -> None:
    problem = make_problem(shape, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(ours(problem, True, True, True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])
    assert_close(results[0], direct(problem, True, True, True), direct(double(problem), True, True, True), "result")


@every_level
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_results(value: float) -> None:
    x, weight, bias, residual = make_problem((2, 9, 9, 32, 32), torch.float32)
    x[1, 5, 4, 4] = value
    # without ReLU, which makes minus infinity zero
    found = ours((x, weight, bias, residual), True, True, False)
    assert not found[1, :, 3:6, 3:6].isfinite().any()
    assert found[0].isfinite().all()
    assert ours((x, weight, bias, residual), True, True, True)[1, :, 3:6, 3:6].isnan().any() or value == torch.inf
    residual[0, 3, 2, 2] = value
    found = ours((*make_problem((2, 9, 9, 32, 32), torch.float32)[:3], residual), True, True, True)
    assert (~found.isfinite()).nonzero().tolist() == [[0, 3, 2, 2]]


def test_no_images_and_other_layouts() -> None:
    assert ours(make_problem((0, 4, 4, 32, 48), torch.float32), True, True, True).shape == (0, 48, 4, 4)
    problem = make_problem((2, 6, 5, 32, 48), torch.float32)
    x, weight, bias, residual = problem
    other = x.contiguous(), weight.contiguous(), bias, residual.contiguous()
    assert torch.equal(ours(other, True, True, True), ours(problem, True, True, True))


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias, residual = make_problem((2, 6, 5, 32, 48), torch.float32)
    rows, transformed = x.permute(0, 2, 3, 1), frozen.transform(weight)
    added = residual.permute(0, 2, 3, 1)
    call = torch.ops.semckd_cpu.winograd_frozen
    for arguments, words in (
        ((x, transformed, 48, bias, added, True), "x must be contiguous rows"),
        ((rows, transformed[1:], 48, bias, added, True), "transformed must be"),
        ((rows, transformed, 96, bias, added, True), "transformed must be"),
        ((rows, transformed, 48, bias[1:], added, True), "bias must be"),
        ((rows, transformed, 48, bias, added[1:], True), "residual must be"),
        ((rows, transformed, 48, bias, added.double(), True), "residual must be"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call(*arguments)
    with pytest.raises(RuntimeError, match=r"weight must be \[C, c, 3, 3\]"):
        torch.ops.semckd_cpu.winograd_transform(torch.zeros(8, 8, 5, 5))
    with pytest.raises(RuntimeError, match="a weight must be float32 or float64"):
        torch.ops.semckd_cpu.winograd_transform(weight.half())


def test_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMCKD_CONV", raising=False)

    def conv(*arguments: int, **options: object) -> nn.Conv2d:
        return nn.Conv2d(*arguments, **{"padding": 1, **options})  # type: ignore[arg-type]

    assert frozen.may_serve(conv(32, 64, 3))
    assert frozen.may_serve(conv(64, 32, 3).double())
    for other in (conv(32, 64, 1, padding=0), conv(64, 64, 3, stride=2), conv(64, 64, 3, groups=2), conv(3, 64, 3)):
        assert not frozen.may_serve(other)
    assert not frozen.may_serve(conv(64, 64, 3, padding_mode="reflect"))
    sizes = ((1, 1), (1, 8), (2, 2), (3, 3), (5, 5), (2, 5), (7, 7))
    assert [frozen.serves(torch.zeros(2, 32, h, w)) for h, w in sizes] == [False, False, True, True, True, True, True]
    monkeypatch.setenv("SEMCKD_CONV", "vendor")
    assert not frozen.may_serve(conv(32, 64, 3))
    assert not frozen.serves(torch.zeros(2, 32, 8, 8))
