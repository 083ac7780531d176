"""What only a GPU can show: graphs, streams, devices, synchronisation, memory. Run by ``make gpu``."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from problems import Problem, make_problem
from served import SERVED, Backend
from torch import Tensor

from semckd_kernels import functional

ON_GPU = [backend for backend in SERVED if backend.device == "cuda" and backend.name != "reference"]
pytestmark = pytest.mark.skipif(not ON_GPU, reason="no kernel serves a GPU here")

SHAPES = [[(16, 8, 8), (32, 4, 4)], [(16, 4, 4), (33, 3, 5)]]


@pytest.fixture(params=ON_GPU, ids=lambda b: b.name)
def gpu(request: pytest.FixtureRequest) -> Backend:
    return request.param


def leaves(problem: Problem) -> list[Tensor]:
    return [x.requires_grad_() for x in (*chain(*problem.s), problem.weight)]


def step(problem: Problem, wanted: list[Tensor], name: str) -> list[Tensor]:
    loss = functional.semckd_loss_from_energy(problem.s, problem.t, problem.weight, backend=name)
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


def test_graph_replays_on_new_inputs(gpu: Backend) -> None:
    problem = make_problem(SHAPES, batch=6, device="cuda")
    wanted = leaves(problem)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(problem, wanted, gpu.name)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(problem, wanted, gpu.name)
    for seed in (1, 2, 3):
        fresh = make_problem(SHAPES, batch=6, device="cuda", seed=seed)
        with torch.no_grad():
            old = (*chain(*problem.s), *chain(*problem.t), problem.weight)
            new = (*chain(*fresh.s), *chain(*fresh.t), fresh.weight)
            for x, y in zip(old, new, strict=True):
                x.copy_(y)
        graph.replay()
        expected = step(fresh, leaves(fresh), gpu.name)
        assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))


def test_runs_on_the_current_stream(gpu: Backend) -> None:
    problem = make_problem(SHAPES, batch=6, device="cuda")
    wanted = leaves(problem)
    expected = step(problem, wanted, gpu.name)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        # behind a long wait on the side stream: work on another stream would read the values before this
        torch.cuda._sleep(50_000_000)
        for x in wanted:
            x.mul_(2)
    with torch.cuda.stream(side):
        doubled = step(problem, wanted, gpu.name)
        with torch.no_grad():
            for x in wanted:
                x.div_(2)
        again = step(problem, wanted, gpu.name)
    side.synchronize()
    assert not torch.equal(doubled[0], expected[0])
    assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))


def test_never_waits_for_the_gpu(gpu: Backend) -> None:
    problem = make_problem(SHAPES, batch=6, device="cuda")
    wanted = leaves(problem)
    step(problem, wanted, gpu.name)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(problem, wanted, gpu.name)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_memory_but_the_gradients(gpu: Backend) -> None:
    problem = make_problem([[(64, 32, 32)] * 3] * 3, batch=64, device="cuda")
    wanted = leaves(problem)
    del wanted[-1]
    step(problem, wanted, gpu.name)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = step(problem, wanted, gpu.name)
    extra = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in gradients)
    assert extra < 2**20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_that_is_not_current(gpu: Backend) -> None:
    first, second = (make_problem(SHAPES, batch=6, device=f"cuda:{n}") for n in range(2))
    expected, got = (step(problem, leaves(problem), gpu.name) for problem in (first, second))
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(got, expected, strict=True))
