"""Every backend against the reference in fp64: values, gradients, types, layouts, repeatability."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import ODD_COUNTS, Gradients, Problem, make_problem
from served import SERVED, Backend
from tolerances import assert_close
from torch import Tensor

from semckd_kernels import functional
from semckd_kernels.layout import packed_strides

HALF_AND_FLOAT = (torch.float32, torch.float16, torch.bfloat16)
TYPES = [(s, t) for s in HALF_AND_FLOAT for t in HALF_AND_FLOAT] + [(torch.float64, torch.float64)]

# what the loops of an instruction set see: not layouts, which are packed before, nor what is above the kernels
every_level = pytest.mark.every_level(backend=[b for b in SERVED if b.name == "cpu"])


def check_against_fp64(problem: Problem, backend: Backend, energy: bool = False) -> Gradients:
    exact = problem.double().run("reference", energy)
    eager = problem.run("reference", energy)
    value = problem.run(backend.name, energy)
    assert_close(value.loss, eager.loss, exact.loss, "loss")
    assert_close(value.pair_mse, eager.pair_mse, exact.pair_mse, "pair_mse")
    assert_close(value.d_weight, eager.d_weight, exact.d_weight, "d_weight")
    for name in ("d_s", "d_t"):
        triples = zip(getattr(value, name), getattr(eager, name), getattr(exact, name), strict=True)
        for q, (a, b, c) in enumerate(triples):
            assert_close(a, b, c, f"{name}[{q}]")
    return value


@every_level
@pytest.mark.parametrize("energy", [False, True], ids=["weight", "energy"])
@pytest.mark.parametrize(("s_type", "t_type"), TYPES, ids=lambda t: str(t).removeprefix("torch."))
def test_types(backend: Backend, s_type: torch.dtype, t_type: torch.dtype, energy: bool) -> None:
    value = check_against_fp64(make_problem(s_type=s_type, t_type=t_type, device=backend.device), backend, energy)
    assert value.loss.dtype == (torch.float64 if s_type == torch.float64 else torch.float32)


@every_level
@pytest.mark.parametrize("count", ODD_COUNTS)
def test_odd_sizes(backend: Backend, count: int) -> None:
    check_against_fp64(make_problem([[(count,), (count, 2)]], device=backend.device), backend)


@every_level
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches(backend: Backend, batch: int) -> None:
    check_against_fp64(make_problem(batch=batch, device=backend.device), backend, energy=True)


@every_level
def test_many_pairs(backend: Backend) -> None:
    # more than fit one table of kernel arguments
    check_against_fp64(make_problem([[(3, 2, 2)] * 12] * 7, batch=2, device=backend.device), backend, energy=True)


@every_level
def test_types_that_differ_from_pair_to_pair(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    problem.s = [[x.to(kinds[j]) for j, x in enumerate(row)] for row in problem.s]
    problem.t = [[x.to(kinds[(i + j) % 3]) for j, x in enumerate(row)] for i, row in enumerate(problem.t)]
    check_against_fp64(problem, backend)


@every_level
def test_one_fp64_map_makes_all_fp64(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    problem.t[1][2] = problem.t[1][2].double()
    value = problem.run(backend.name)
    exact = problem.double().run("reference")
    assert value.loss.dtype == torch.float64
    torch.testing.assert_close(value.loss, exact.loss, rtol=1e-13, atol=0)
    assert value.d_s[0].dtype == torch.float32
    assert value.d_t[-1].dtype == torch.float64


@every_level
@pytest.mark.parametrize("weight_type", [torch.float16, torch.bfloat16, torch.float64])
def test_weight_of_another_type(backend: Backend, weight_type: torch.dtype) -> None:
    problem = make_problem(device=backend.device)
    problem.weight = problem.weight.to(weight_type)
    value = check_against_fp64(problem, backend)
    assert value.d_weight.dtype == weight_type


@every_level
def test_one_hot_and_unnormalised_weights(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    problem.weight = torch.zeros_like(problem.weight)
    problem.weight[:, 0, 1] = 1
    value = check_against_fp64(problem, backend)
    assert value.d_s[0].abs().max() == 0
    problem.weight = torch.full_like(problem.weight, -2.5)
    check_against_fp64(problem, backend)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    return torch.cat([x, x + 1], 1)[:, : x.shape[1]]


def every_other_channel(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1)[:, ::2]


def expanded_batch(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def expanded_channel(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def channels_last_sliced(x: Tensor) -> Tensor:
    return channels_last(torch.cat([x, x + 1], 1))[:, : x.shape[1]]


def every_other_sample(x: Tensor) -> Tensor:
    return channels_last(x.repeat_interleave(2, 0))[::2]


def transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = [
    torch.clone,
    channels_last,
    sliced,
    every_other_channel,
    expanded_batch,
    expanded_channel,
    channels_last_sliced,
    every_other_sample,
    transposed,
]


@pytest.mark.parametrize("t_layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("s_layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(backend: Backend, s_layout, t_layout) -> None:
    if backend.interpreted and s_layout is not t_layout and torch.clone not in (s_layout, t_layout):
        pytest.skip("interpreted kernels are slow: each layout on either side, and on both")
    problem = make_problem([[(4, 6, 5), (8, 3, 3)]], device=backend.device)
    problem.s = [[s_layout(x) for x in row] for row in problem.s]
    problem.t = [[t_layout(x) for x in row] for row in problem.t]
    problem.weight = problem.weight.transpose(1, 2).contiguous().transpose(1, 2)
    value = check_against_fp64(problem, backend)
    if backend.name != "reference":
        for d_s, d_t, x in zip(value.d_s, value.d_t, problem.s[0], strict=True):
            assert list(d_s.stride()) == list(d_t.stride()) == packed_strides(x)


@every_level
def test_bitwise_repeatable(backend: Backend) -> None:
    # several programs a map: of interpreted kernels, more would take half a minute
    large = (16, 20, 21) if backend.interpreted else (64, 40, 41)
    problem = make_problem([[large, (3, 5, 7)]], batch=4, device=backend.device)
    runs = [problem.run(backend.name, energy=True) for _ in range(3)]
    for again in runs[1:]:
        for a, b in zip(runs[0], again, strict=True):
            pairs = [(a, b)] if isinstance(a, Tensor) else zip(a, b, strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)


@every_level
def test_outputs_are_written_not_assumed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch fills what torch.empty and its kin hand out with NaN, from Python and from C++ alike
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        value = check_against_fp64(make_problem(device=backend.device), backend, energy=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(x.isnan().any() for x in [value.loss, value.pair_mse, value.d_weight, *value.d_s, *value.d_t])


def test_gradients_only_where_asked(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    s = [[x.requires_grad_(j == 0) for j, x in enumerate(row)] for row in problem.s]
    loss = functional.semckd_loss(s, problem.t, problem.weight, backend=backend.name)
    loss.backward()
    assert s[0][0].grad is not None
    assert s[0][1].grad is None
    assert problem.t[0][0].grad is None
    assert problem.weight.grad is None


def test_no_graph_without_gradient(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    assert not functional.semckd_loss(problem.s, problem.t, problem.weight, backend=backend.name).requires_grad
    s = [[x.requires_grad_() for x in row] for row in problem.s]
    with torch.no_grad():
        assert not functional.semckd_loss(s, problem.t, problem.weight, backend=backend.name).requires_grad


@every_level
def test_pair_mse_value_and_gradient(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    upstream = torch.randn_like(problem.weight)

    def run(p: Problem, name: str) -> list[Tensor]:
        maps = [[[x.detach().requires_grad_() for x in row] for row in rows] for rows in (p.s, p.t)]
        mse = functional.pair_mse(*maps, backend=name)
        leaves = [x for rows in maps for row in rows for x in row]
        return [mse.detach(), *torch.autograd.grad(mse, leaves, upstream.to(mse.dtype))]

    exact, eager, value = run(problem.double(), "reference"), run(problem, "reference"), run(problem, backend.name)
    for n, (a, b, c) in enumerate(zip(value, eager, exact, strict=True)):
        assert_close(a, b, c, f"result {n}")


def test_empty_batch(backend: Backend) -> None:
    value = make_problem(batch=0, device=backend.device).run(backend.name, energy=True)
    assert value.loss.item() == 0
    assert value.pair_mse.shape == value.d_weight.shape == (0, 2, 3)
    assert value.d_s[2].shape == value.d_t[2].shape == (0, 3, 7, 3)


@every_level
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_the_loss_and_no_other_sample(backend: Backend, bad: float) -> None:
    problem = make_problem(device=backend.device)
    clean = problem.run(backend.name)
    problem.s[0][2][1, 0, 0, 0] = bad
    value = problem.run(backend.name)
    assert not value.loss.isfinite()
    assert not value.pair_mse[1, 0, 2].isfinite()
    others = torch.ones_like(value.pair_mse, dtype=torch.bool)
    others[1, 0, 2] = False
    assert torch.equal(value.pair_mse[others], clean.pair_mse[others])
    for q, (d_x, expected) in enumerate(zip(value.d_s, clean.d_s, strict=True)):
        samples = [0, 2] if q == 2 else [0, 1, 2]
        assert torch.equal(d_x[samples], expected[samples])


@every_level
def test_overflowing_half_precision_squares(backend: Backend) -> None:
    # (300 - (-300))^2 is beyond fp16: sums are kept in fp32
    s = [[torch.full((2, 4, 4), 300.0, device=backend.device, dtype=torch.float16)]]
    t = [[-s[0][0]]]
    mse = functional.pair_mse(s, t, backend=backend.name)
    assert mse.flatten().tolist() == [360000.0] * 2


@every_level
def test_large_energies_do_not_overflow(backend: Backend) -> None:
    problem = make_problem(device=backend.device)
    # exp would overflow fp64 as well
    problem.weight = problem.weight * 3 + 2000
    value = check_against_fp64(problem, backend, energy=True)
    assert value.loss.isfinite()


def test_gradcheck(backend: Backend) -> None:
    problem = make_problem([[(3, 2, 2), (5, 1, 3)]] * 2, batch=2, device=backend.device).double()
    flat = [x.requires_grad_() for x in (*chain(*problem.s), *chain(*problem.t), problem.weight)]

    def loss(energy: bool):
        function = functional.semckd_loss_from_energy if energy else functional.semckd_loss

        def call(*maps: Tensor) -> Tensor:
            return function(
                [list(maps[0:2]), list(maps[2:4])], [list(maps[4:6]), list(maps[6:8])], maps[8], backend=backend.name
            )

        return call

    for energy in (False, True):
        assert torch.autograd.gradcheck(loss(energy), flat, fast_mode=True)


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_level
@pytest.mark.parametrize("backend", [b for b in SERVED if not b.interpreted], ids=lambda b: b.name)
@examples(25)
@given(data=st.data())
def test_any_shapes(backend: Backend, data: st.DataObject) -> None:
    check_any_shapes(backend, data)


@pytest.mark.parametrize("backend", [b for b in SERVED if b.interpreted], ids=lambda b: b.name)
@examples(6)
@given(data=st.data())
def test_any_shapes_interpreted(backend: Backend, data: st.DataObject) -> None:
    check_any_shapes(backend, data)


def check_any_shapes(backend: Backend, data: st.DataObject) -> None:
    dims = st.integers(1, 9)
    most = 2 if backend.interpreted else 4
    t_layers = data.draw(st.integers(1, most))
    rows = st.lists(st.tuples(dims, dims, dims), min_size=t_layers, max_size=t_layers)
    shapes = data.draw(st.lists(rows, min_size=1, max_size=min(most, 3)))
    s_type, t_type = data.draw(st.sampled_from(TYPES))
    problem = make_problem(shapes, data.draw(st.integers(1, 4)), s_type, t_type, backend.device, seed=len(shapes))
    check_against_fp64(problem, backend, energy=data.draw(st.booleans()))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="more than 2^31 elements need more memory than a test may take on the CPU"
)
def test_more_than_2_to_the_31_elements(backend: Backend) -> None:
    n = 2**31 + 17
    s = [[torch.zeros(1, n, dtype=torch.float16, device=backend.device)]]
    t = [[torch.zeros_like(s[0][0])]]
    s[0][0][0, -1] = 2
    mse = functional.pair_mse(s, t, backend=backend.name)
    torch.testing.assert_close(mse.item(), 4 / n)
