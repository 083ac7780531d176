"""The criterion's stages on the CPU, one at a time, against the plain ones in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from cpu_stages import CpuStages, Workspace
from plain_algebra import BackwardCoefficients, BatchNorm, LinearMoments, Moments
from plain_stages import EagerStages, PlainStages
from stage_interface import PairSize, Stages
from tolerances import assert_close_on_average
from torch import Tensor

import semckd_kernels as sk

pytestmark = pytest.mark.skipif(not sk.available_backends()["cpu"].available, reason="the library was not built")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


# odd everything; single pixels; one row; a tile's rows and one more; whole panels; many chunks and samples a tile
CASES = [
    PairSize(5, 7, 7, 40, 24),
    PairSize(1, 1, 1, 3, 9),
    PairSize(3, 1, 1, 18, 65),
    PairSize(1, 1, 96, 64, 64),
    PairSize(1, 97, 1, 33, 20),
    PairSize(2, 16, 16, 64, 32),
    PairSize(130, 3, 3, 16, 8),
    PairSize(3, 31, 9, 18, 17),
]
# a lesser instruction set has loops of its own over panels and rows, whose tails these have
every_level = pytest.mark.every_level
TAILS = [CASES[0], CASES[2], CASES[-1]]


def stages() -> Stages:
    return CpuStages(Workspace())


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def inputs(case: PairSize, dtype: torch.dtype, seed: int = 0, convolutions: bool = True) -> dict[str, Tensor]:
    """Every argument that a stage takes, of ordinary size: maps in ``dtype``, the rest in its accumulation type.

    Most values are those of a 3x3 convolution's weight, which ``convolutions=False`` leaves out.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift

    B, h, w, c, C = case
    K = case.K
    maps = {
        "x": normal(B, h, w, c, shift=0.5),
        "h": torch.relu(normal(B, h, w, K)),
        "z": normal(B, h, w, K, scale=2.0, shift=0.3),
        "y": normal(B, h, w, C),
        "d": normal(B, h, w, K),
    }
    others = {
        "weight1": normal(K, c, scale=c**-0.5),
        "bias1": normal(K),
        "square": normal(c, c, scale=c**-0.5),
        "bias0": normal(c),
        "mean0": normal(c, scale=0.3),
        "d_weight1": normal(K, c),
        "between": normal(B, B),
        "mean": normal(K, scale=0.3),
        "scale": normal(K, scale=0.2, shift=0.5),
        "beta": normal(K),
        "weight3": normal(C, K, scale=K**-0.5),
        "coef": torch.rand(B, generator=generator, dtype=torch.float64),
        **({"weight2": normal(K, K, 3, 3, scale=(9 * K) ** -0.5)} if convolutions else {}),
        "d_x": normal(B, h, w, c),
    }
    others["covariance"] = others["square"] @ others["square"].t()
    return {n: v.to(dtype) for n, v in maps.items()} | {n: v.to(acc_dtype(dtype)) for n, v in others.items()}


def poisoned(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


Results = dict[str, Tensor]


def moments(on: Stages, i: dict[str, Tensor]) -> Results:
    mean, covariance = on.moments(i["x"])
    return {"mean": mean, "covariance": covariance}


def linear_relu(on: Stages, i: dict[str, Tensor]) -> Results:
    h = poisoned(i["h"])
    on.linear_relu(i["x"], i["weight1"], i["bias1"], h)
    return {"h": h}


def conv3x3(on: Stages, i: dict[str, Tensor]) -> Results:
    z, mean, variance = on.conv3x3(i["h"], i["weight2"], True)
    assert mean is not None
    assert variance is not None
    alone, *nothing = on.conv3x3(i["h"], i["weight2"], False)
    assert nothing == [None, None]
    assert torch.equal(alone, z)
    return {"z": z, "mean": mean, "variance": variance}


def norm(i: dict[str, Tensor]) -> BatchNorm:
    # gamma is one
    return BatchNorm(i["mean"], i["scale"], i["scale"], i["beta"], batch_statistics=True)


def end(on: Stages, i: dict[str, Tensor]) -> Results:
    d_h = poisoned(i["z"])
    results = on.end(i["z"], norm(i), i["weight3"], i["y"], i["coef"], d_h)
    assert results.d_weight is not None
    assert results.sum_d is not None
    assert results.sum_dz is not None
    return {**results._asdict(), "d_h": d_h}


def end_error(on: Stages, i: dict[str, Tensor]) -> Results:
    error, *nothing = on.end(i["z"], norm(i), i["weight3"], i["y"], None, None)
    assert nothing == [None, None, None]
    return {"squared_error": error}


def conv3x3_backward(on: Stages, i: dict[str, Tensor]) -> Results:
    coefficients = BackwardCoefficients(i["scale"], i["mean"], i["beta"])
    d_h, d_weight = on.conv3x3_backward(i["h"], i["weight2"], i["z"], i["d"].clone(), coefficients)
    return {"d_h": d_h, "d_weight": d_weight}


def linear_relu_backward(on: Stages, i: dict[str, Tensor], accumulate: bool = False) -> Results:
    d_x = i["d_x"].clone() if accumulate else poisoned(i["d_x"])
    d_weight, d_bias = on.linear_relu_backward(i["x"], i["h"], i["d"].clone(), i["weight1"], d_x, accumulate)
    return {"d_x": d_x, "d_weight": d_weight, "d_bias": d_bias}


def linear_relu_backward_added(on: Stages, i: dict[str, Tensor]) -> Results:
    return linear_relu_backward(on, i, accumulate=True)


def linear_add(on: Stages, i: dict[str, Tensor]) -> Results:
    d_x = i["d_x"].clone()
    on.linear_add_(i["x"], i["square"], i["bias0"], d_x)
    return {"d_x": d_x}


def linear_moments(on: Stages, i: dict[str, Tensor]) -> Results:
    results = on.linear_moments(Moments(i["mean0"], i["covariance"]), i["weight1"])
    return results._asdict()


def linear_norm_backward(on: Stages, i: dict[str, Tensor]) -> Results:
    norm = BatchNorm(i["mean"], i["scale"], i["bias1"], i["beta"], batch_statistics=True)
    moments = LinearMoments(i["mean"], i["scale"], i["weight1"].flip(0), i["mean0"])
    results = on.linear_norm_backward(norm, i["weight1"], moments, i["d_weight1"], i["beta"])
    names = "d_weight", "d_gamma", "matrix", "constant"
    return dict(zip(names, results, strict=True))


def similarity(on: Stages, i: dict[str, Tensor]) -> Results:
    return {"similarity": on.similarity(i["x"].flatten(1))}


def similarity_add(on: Stages, i: dict[str, Tensor]) -> Results:
    d_x = i["d_x"].clone()
    on.similarity_add_(i["between"], i["x"].flatten(1), d_x.flatten(1))
    return {"d_x": d_x}


OWN = [
    moments,
    linear_relu,
    end,
    end_error,
    linear_relu_backward,
    linear_relu_backward_added,
    linear_add,
    linear_moments,
    linear_norm_backward,
    similarity,
    similarity_add,
]
CONVOLUTIONS = [conv3x3, conv3x3_backward]
Run = Callable[[Stages, dict[str, Tensor]], Results]


class StrictEagerStages(EagerStages):
    """Eager stages but for a product whose result is rounded to the map type anyway: its weight stays as it is."""

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        PlainStages().linear_relu(x, weight, bias, h)


def to_double(i: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in i.items()}


def check(run: Run, of_seed: Callable[[int], dict[str, Tensor]], dtype: torch.dtype) -> None:
    """A stage's results against the plain stage's in fp64, judged by those of the plain stage in the same types.

    A single sum of rounded values may come out right by chance on either side: several seeds judge 16-bit types.
    """
    seeds = range(1 if dtype.itemsize > 2 else 5)
    triples = [_triple(run, of_seed(seed)) for seed in seeds]
    for name in triples[0][0]:
        values, eagers, exacts = ([results[name] for results in column] for column in zip(*triples, strict=True))
        assert all(value.is_contiguous() for value in values) or name == "d_weight"
        assert_close_on_average(values, eagers, exacts, f"{run.__name__}: {name}")


def _triple(run: Run, i: dict[str, Tensor]) -> tuple[Results, Results, Results]:
    return run(stages(), i), run(StrictEagerStages(i["x"].dtype), i), run(PlainStages(), to_double(i))


@every_level(run=OWN, case=TAILS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("run", OWN + CONVOLUTIONS, ids=lambda run: run.__name__)
def test_stage(run: Run, case: PairSize, dtype: torch.dtype) -> None:
    check(run, partial(inputs, case, dtype), dtype)


@pytest.mark.parametrize("P", [1, 2, 11, 12, 13, 95, 96, 97, 255, 512, 769])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", OWN, ids=lambda run: run.__name__)
def test_any_number_of_rows(run: Run, dtype: torch.dtype, P: int) -> None:
    check(run, partial(inputs, PairSize(1, P, 1, 20, 9), dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", OWN, ids=lambda run: run.__name__)
def test_wide_channels(run: Run, dtype: torch.dtype) -> None:
    check(run, partial(inputs, PairSize(2, 4, 4, 260, 300), dtype, convolutions=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_strided_weight_keeps_its_strides(dtype: torch.dtype) -> None:
    def strided(seed: int) -> dict[str, Tensor]:
        i = inputs(PairSize(2, 9, 8, 8, 10), dtype, seed)
        return i | {"weight2": i["weight2"].to(memory_format=torch.channels_last)}

    check(conv3x3, strided, dtype)
    check(conv3x3_backward, strided, dtype)
    i = strided(0)
    assert conv3x3_backward(stages(), i)["d_weight"].stride() == i["weight2"].stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("run", OWN + CONVOLUTIONS, ids=lambda run: run.__name__)
def test_two_runs_are_bitwise_equal(run: Run, dtype: torch.dtype) -> None:
    i = inputs(PairSize(4, 14, 14, 33, 40), dtype)
    first, second = run(stages(), i), run(stages(), i)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# the vendor's convolutions split their sums by threads
@pytest.mark.usefixtures("any_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("run", OWN, ids=lambda run: run.__name__)
def test_same_bits_for_any_number_of_threads(run: Run, dtype: torch.dtype) -> None:
    i = inputs(PairSize(7, 19, 19, 33, 40), dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(stages(), i))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.usefixtures("any_threads")
def test_statistics_do_not_depend_on_threads() -> None:
    z = inputs(PairSize(7, 19, 19, 33, 40), torch.float32)["z"]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(torch.ops.semckd_cpu.row_statistics(z))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_error_does_not_depend_on_whether_gradients_are_wanted() -> None:
    i = inputs(PairSize(7, 19, 19, 33, 40), torch.float32)
    assert torch.equal(end(stages(), i)["squared_error"], end_error(stages(), i)["squared_error"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("run", "name"), [(end, "z"), (end, "y"), (end_error, "z"), (linear_relu, "x")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_reaches_its_own_results_alone(run: Run, name: str, dtype: torch.dtype, bad: float) -> None:
    i = inputs(PairSize(9, 5, 5, 18, 20), dtype)
    good = run(stages(), i)
    i[name][4, 2, 3, 1] = bad
    results = run(stages(), i)
    for key in ("squared_error", "d_h", "h"):
        if key not in results:
            continue
        others = torch.arange(9) != 4
        assert torch.equal(results[key][others], good[key][others])
        assert not results[key][4].isfinite().all()
    for key in {"d_weight", "sum_d", "sum_dz"} & results.keys():
        assert not results[key].isfinite().all()


@pytest.mark.parametrize("run", [linear_relu_backward, linear_relu_backward_added, linear_add, moments, similarity])
def test_nan_reaches_every_result(run: Run) -> None:
    i = inputs(PairSize(9, 5, 5, 18, 20), torch.float32)
    i["x"][4, 2, 3, 1] = i["d"][3, 1, 1, 7] = float("nan")
    i["h"][3, 1, 1, 7] = 1.0
    assert all(value.isnan().any() for value in run(stages(), i).values())


@every_level
def test_nan_does_not_spread_from_padding() -> None:
    """Products of NaN with padding's zeros stay in the padding."""
    i = inputs(PairSize(2, 3, 3, 5, 3), torch.float32)
    i["z"][0, 0, 0, 2] = float("nan")
    results = end(stages(), i)
    assert results["squared_error"][1].isfinite()
    assert results["d_h"][0, 1:].isfinite().all()
    assert torch.equal(results["d_weight"].isnan(), end(PlainStages(), i)["d_weight"].isnan())
    # the mask comes from h as torch's does: a NaN gradient passes where the activation is positive or NaN
    blocked = (i["z"][0, 0, 0] - i["mean"]) * i["scale"] + i["beta"] <= 0
    assert torch.equal(results["d_h"][0, 0, 0].isnan(), ~blocked)
    assert torch.equal(results["sum_d"].isnan(), ~blocked)


@every_level
@pytest.mark.parametrize(("shift", "limit"), [(1e3, 1e-6), (1e5, 1e-4)])
def test_statistics_far_from_zero(shift: float, limit: float) -> None:
    """A mean far above the deviation costs no more than its own rounding: sums of squares would lose it all."""
    z = (torch.randn(6, 17, 13, 70, generator=torch.Generator().manual_seed(0)) + shift).contiguous()
    z[0, 0, 0] = 0.0 if shift < 1e4 else shift
    exact = z.double().flatten(0, 2)
    mean, variance = torch.ops.semckd_cpu.row_statistics(z)
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=2e-7, atol=0)
    torch.testing.assert_close(variance.double(), exact.var(0, unbiased=False), rtol=limit, atol=0)
    mean, covariance = torch.ops.semckd_cpu.row_moments(z)
    centred = exact - exact.mean(0)
    expected = centred.t() @ centred / len(exact)
    assert (covariance - expected).norm() <= limit * expected.norm()
    assert torch.equal(covariance, covariance.t())


def test_an_empty_batch() -> None:
    i = inputs(PairSize(0, 4, 4, 18, 20), torch.float32)
    assert not any(linear_relu_backward(stages(), i)[name].any() for name in ("d_weight", "d_bias"))
    results = end(stages(), i)
    assert results["squared_error"].shape == (0,)
    assert not any(results[name].any() for name in ("d_weight", "sum_d", "sum_dz"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weight3", lambda x: x.t().contiguous().t()),
        ("weight3", lambda x: x[:, :-1].contiguous()),
        ("mean", lambda x: x.double()),
        ("y", lambda x: x.to(torch.bfloat16)),
        ("z", lambda x: x.transpose(1, 2)),
        ("coef", lambda x: x[:-1]),
    ],
)
def test_wrong_arguments_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    i = inputs(PairSize(3, 4, 5, 18, 20), torch.float32)
    i[name] = change(i[name])
    with pytest.raises(RuntimeError, match=f"semckd: .*{name.rstrip('3')}"):
        end(stages(), i)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64, 49), (1, 1, 1), (2, 17, 33), (4, 16, 16), (5, 40, 96), (0, 3, 4)], ids=str)
def test_transpose_copies_every_bit(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    limits = torch.iinfo(integer)
    bits = torch.randint(limits.min, limits.max, shape, dtype=integer, generator=torch.Generator().manual_seed(0))
    out = torch.full((shape[0], shape[2], shape[1]), 7.0, dtype=dtype)
    stages().transpose_(bits.view(dtype), out)
    assert torch.equal(out.view(integer), bits.mT)


@pytest.mark.parametrize("features", [20, 100, 3000])
def test_similarity_is_as_exact_as_torchs_product(features: int) -> None:
    def error(of: Callable[[Tensor], Tensor]) -> float:
        total = 0.0
        for seed in range(10):
            x = torch.relu(torch.randn(8, features, generator=torch.Generator().manual_seed(seed)))
            exact = x.double() @ x.double().t()
            total += ((of(x) - exact).norm() / exact.norm()).item()
        return total

    assert error(stages().similarity) <= 1.2 * error(lambda x: x @ x.t())


def test_huge_pages_are_only_a_wish() -> None:
    buffer = torch.zeros(5_000_003, dtype=torch.uint8)
    torch.ops.semckd_cpu.advise_huge_pages(buffer[7:])
    torch.ops.semckd_cpu.advise_huge_pages(buffer[:0])
    assert not buffer.any()
