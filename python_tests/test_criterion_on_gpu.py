"""What only a GPU can show of the whole criterion: graphs, side streams, synchronisation, memory; for ``make gpu``."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from criterion_problems import CASES, Case, step
from served import CRITERION_SERVED, Backend
from tolerances import assert_close_on_average

import semckd_kernels as sk

ON_GPU = [backend for backend in CRITERION_SERVED if backend.device == "cuda"]
pytestmark = pytest.mark.skipif(not ON_GPU, reason="no kernel of the criterion serves a GPU here")

SQUARE = CASES["square"]
CIFAR = Case(
    [64, 128, 256], [64, 128, 256], [(32, 32), (16, 16), (8, 8)], [(32, 32), (16, 16), (8, 8)], batch=64, batch_size=64
)


@pytest.fixture(params=ON_GPU, ids=lambda b: b.name)
def gpu(request: pytest.FixtureRequest) -> Backend:
    return request.param


def autocast(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    # a graph must not rely on casts that were cached outside of it
    return torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False)


def leaves(module: sk.SemCKD, feat_s: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*feat_s, *module.parameters()]


@pytest.mark.parametrize("half", [False, True])
def test_graph_replays_on_new_inputs(gpu: Backend, half: bool) -> None:
    """A whole forward and backward is captured, pairs on side streams, and replayed on other maps."""
    module = SQUARE.module(gpu.name, "cuda")
    feat_s, feat_t = SQUARE.maps("cuda")

    def run(criterion: sk.SemCKD, students: list[torch.Tensor], teachers: list[torch.Tensor]) -> list[torch.Tensor]:
        with autocast(half):
            loss, weight, mse = criterion(students, teachers)
        return [loss.detach(), weight, mse, *torch.autograd.grad(loss, leaves(criterion, students))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(module, feat_s, feat_t)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(module, feat_s, feat_t)
    eager = copy.deepcopy(module)
    for seed in (1, 2, 3):
        fresh_s, fresh_t = SQUARE.maps("cuda", seed=seed)
        with torch.no_grad():
            for old, new in zip((*feat_s, *feat_t), (*fresh_s, *fresh_t), strict=True):
                old.copy_(new)
        graph.replay()
        expected = run(eager, fresh_s, fresh_t)
        assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))
    # running statistics move at each replay
    for (name, x), (_, y) in zip(module.named_buffers(), eager.named_buffers(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("half", [False, True])
def test_make_graphed_callables(gpu: Backend, half: bool) -> None:
    class Loss(torch.nn.Module):
        def __init__(self, criterion: sk.SemCKD) -> None:
            super().__init__()
            self.criterion = criterion

        def forward(self, *maps: torch.Tensor) -> torch.Tensor:
            count = self.criterion.s_len
            return self.criterion(list(maps[:count]), list(maps[count:])).loss

    # statistics of the warm-up would differ from the eager module's
    module = SQUARE.module(gpu.name, "cuda").eval()
    eager = copy.deepcopy(module)
    feat_s, feat_t = SQUARE.maps("cuda")
    with autocast(half):
        graphed = torch.cuda.make_graphed_callables(Loss(module), (*feat_s, *feat_t))
    for seed in (1, 2):
        fresh_s, fresh_t = SQUARE.maps("cuda", seed=seed)
        with autocast(half):
            losses = graphed(*fresh_s, *fresh_t), Loss(eager)(*fresh_s, *fresh_t)
        gradients = [
            torch.autograd.grad(3 * loss, leaves(m, fresh_s)) for loss, m in zip(losses, (module, eager), strict=True)
        ]
        assert torch.equal(*losses)
        assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_does_not_wait_for_the_device(gpu: Backend) -> None:
    module = SQUARE.module(gpu.name, "cuda")
    maps = SQUARE.maps("cuda")
    module(*maps).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(*maps).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("half", [False, True])
def test_cifar_size(gpu: Backend, half: bool) -> None:
    """Full size, with the tile configurations of real channels: on average as close as the reference is."""
    outcomes = []
    for name, kind in ((gpu.name, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        feat_s, feat_t = CIFAR.maps("cuda", kind)
        with autocast(half and kind == torch.float32):
            outcomes.append(step(CIFAR.module(name, "cuda", kind), feat_s, feat_t).tensors)
    names = list(outcomes[0])
    for group in ("loss", "pair_mse", "d_feat_s", "regressor"):
        members = [name for name in names if name.startswith(group)]
        assert_close_on_average(*[[outcome[name] for name in members] for outcome in outcomes], group)


def peak_memory(backend: str) -> int:
    module = CIFAR.module(backend, "cuda")
    feat_s, feat_t = CIFAR.maps("cuda")
    module(feat_s, feat_t).loss.backward()
    for x in leaves(module, feat_s):
        x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    module(feat_s, feat_t).loss.backward()
    return int(torch.cuda.max_memory_allocated() - before)


def test_memory_is_a_fraction_of_the_reference(gpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all pairs at once, and with one at a time; of maps in NCHW, which are copied to rows."""
    reference = peak_memory("reference")
    at_once = peak_memory(gpu.name)
    assert at_once < 0.83 * reference, (at_once, reference)
    monkeypatch.setenv("SEMCKD_CHUNK_MIB", "0")
    one_by_one = peak_memory(gpu.name)
    assert one_by_one < 0.34 * reference, (one_by_one, reference)
