"""Memory that the CPU's kernels use again: maps of a pair, partial sums, large gradients; given back when asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from criterion_problems import Case, step

import semckd_kernels as sk
from semckd_kernels.stages import workspace

CASE = Case([6, 5], [4, 7], [(8, 8), (4, 4)], [(8, 8), (4, 4)], batch=4, batch_size=4)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    workspace.release()
    yield
    workspace.release()


@pytest.mark.skipif(not sk.available_backends()["cpu"].available, reason="the library was not built")
def test_a_calls_maps_are_kept_for_the_next_until_released() -> None:
    # two maps in the middle have 16 MiB each
    case = Case([8], [64], [(32, 32)], [(32, 32)], batch=32, batch_size=32)
    module, maps = case.module("cpu", "cpu"), case.maps("cpu")
    with torch.no_grad():
        module(*maps)
        held = resident()
        module(*maps)
    assert resident() - held < 4 << 20
    workspace.release()
    assert held - resident() > 28 << 20


def test_results_do_not_lie_in_it() -> None:
    """A second step, on other maps, changes nothing that the first has returned."""
    module = CASE.module("cpu", "cpu")
    feat_s, feat_t = CASE.maps("cpu")
    output = module(feat_s, feat_t)
    gradients = torch.autograd.grad(output.loss, [*feat_s, *module.parameters()])
    before = [x.clone() for x in (*output, *gradients)]
    step(module, [x.detach().neg().requires_grad_() for x in feat_s], feat_t)
    for x, y in zip((*output, *gradients), before, strict=True):
        assert torch.equal(x, y)


class TestGradients:
    """Of 36 MiB, more than the C library keeps."""

    PARAMETER = torch.empty(1024, 1024, 3, 3).to(memory_format=torch.channels_last)

    def new(self) -> torch.Tensor:
        gradient = workspace.gradient_of(self.PARAMETER, torch.float32)
        assert gradient.shape == self.PARAMETER.shape
        assert gradient.stride() == self.PARAMETER.stride()
        assert not gradient._is_view()
        return gradient

    def test_memory_comes_back(self) -> None:
        first = self.new()
        where = first.data_ptr()
        del first
        assert self.new().data_ptr() == where

    @pytest.mark.parametrize(
        "hold",
        [
            lambda x: x,
            lambda x: x[0, :2],
            lambda x: x.detach(),
            lambda x: x.numpy(),
            lambda x: x.untyped_storage(),
            lambda x: torch.utils.dlpack.to_dlpack(x),
        ],
        ids=["itself", "a view", "detached", "an array", "its storage", "a capsule"],
    )
    def test_not_while_somebody_holds(self, hold: Callable[[torch.Tensor], object]) -> None:
        first = self.new()
        where = first.data_ptr()
        held = hold(first)
        del first
        assert self.new().data_ptr() != where
        del held
        assert where in [x.data_ptr() for x in (self.new(), self.new())]

    def test_a_parameter_holds_its_gradient(self) -> None:
        parameter = torch.nn.Parameter(self.PARAMETER)
        gradient = self.new().fill_(1)
        where = gradient.data_ptr()
        parameter.backward(gradient)
        assert parameter.grad is not None
        del gradient
        self.new().fill_(2)
        assert (parameter.grad == 1).all()
        parameter.grad = None
        assert where in [x.data_ptr() for x in (self.new(), self.new())]

    def test_shared_memory_is_left_to_its_readers(self) -> None:
        """Another process may read it when here nobody holds it any more."""
        gradient = self.new().share_memory_()
        where = gradient.data_ptr()
        held = [self.new()]
        del gradient
        held.append(self.new())
        assert where not in [x.data_ptr() for x in held]

    def test_other_sizes_are_let_go(self) -> None:
        self.new()
        assert len(workspace._gradients) == 1
        larger = workspace.gradient_of(self.PARAMETER, torch.float64)
        assert [block.storage.nbytes() for block in workspace._gradients] == [larger.nbytes]

    def test_small_ones_are_the_c_librarys(self) -> None:
        parameter = torch.empty(64, 64, 3, 3)
        assert workspace.gradient_of(parameter, torch.float64).shape == parameter.shape
        assert not workspace._gradients


@pytest.mark.skipif(not sk.available_backends()["cpu"].available, reason="the library was not built")
def test_kernels_keep_their_partial_sums_memory_until_released() -> None:
    x = torch.randn(1, 64, 64, 512)
    torch.ops.semckd_cpu.row_moments(x)  # sixteen sums of a megabyte
    held = resident()
    workspace.release()
    assert held - resident() > 8 << 20
    # and afterwards it comes back
    first = torch.ops.semckd_cpu.row_moments(x)
    again = torch.ops.semckd_cpu.row_moments(x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.skipif(not sk.available_backends()["cpu"].available, reason="the library was not built")
def test_threads_share_no_partial_sums() -> None:
    maps = [torch.randn(1, 32, 32, 256, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    expected = [torch.ops.semckd_cpu.row_moments(x)[1] for x in maps]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda x: torch.ops.semckd_cpu.row_moments(x)[1], maps))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
