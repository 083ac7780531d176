"""``inplace_backward=True``: the same gradients without their memory, and an error for every misuse."""

from __future__ import annotations

import pytest
import torch
from problems import Problem, make_problem
from served import Backend
from torch import Tensor

from semckd_kernels import functional

SHAPES = [[(4, 6, 5), (8, 3, 3)], [(2, 2, 2), (8, 3, 1)]]


def leaves_and_projections(problem: Problem) -> tuple[list[Tensor], list[list[Tensor]]]:
    # multiplication by a constant saves nothing for its backward, as a convolution does not save its output
    rows = [[x.detach().requires_grad_() for x in row] for row in problem.s]
    return [x for row in rows for x in row], [[x * 2 for x in row] for row in rows]


def loss_of(s: list[list[Tensor]], problem: Problem, backend: Backend, inplace: bool = True) -> Tensor:
    return functional.semckd_loss(s, problem.t, problem.weight, backend=backend.name, inplace_backward=inplace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_same_gradients(kernel: Backend, dtype: torch.dtype) -> None:
    problem = make_problem(SHAPES, s_type=dtype, t_type=dtype, device=kernel.device)
    leaves, s = leaves_and_projections(problem)
    expected = torch.autograd.grad(loss_of(s, problem, kernel, inplace=False), leaves)
    leaves, s = leaves_and_projections(problem)
    first = s[0][0].data_ptr()
    got = torch.autograd.grad(loss_of(s, problem, kernel), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # the projection's memory now holds its gradient: that of the leaf divided by two
    assert s[0][0].data_ptr() == first
    assert torch.equal(s[0][0].detach() * 2, got[0])


def test_channels_last_against_row_major(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    problem.s = [[x.contiguous(memory_format=torch.channels_last) for x in row] for row in problem.s]
    leaves, s = leaves_and_projections(problem)
    expected = torch.autograd.grad(loss_of(s, problem, kernel, inplace=False), leaves)
    leaves, s = leaves_and_projections(problem)
    got = torch.autograd.grad(loss_of(s, problem, kernel), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_second_backward_raises(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    leaves, s = leaves_and_projections(problem)
    loss = loss_of(s, problem, kernel)
    torch.autograd.grad(loss, leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="there is no second one"):
        torch.autograd.grad(loss, leaves)


def test_another_reader_raises(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    leaves, s = leaves_and_projections(problem)
    # the square saves the projection, and its backward runs after the loss has overwritten it
    s[0][0] = s[0][0].exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss_of(s, problem, kernel), leaves)


def test_a_projection_changed_before_backward_raises(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    leaves, s = leaves_and_projections(problem)
    loss = loss_of(s, problem, kernel)
    with torch.no_grad():
        s[1][0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)


def test_create_graph_raises(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    leaves, s = leaves_and_projections(problem)
    with pytest.raises(RuntimeError, match="excludes create_graph"):
        torch.autograd.grad(loss_of(s, problem, kernel), leaves, create_graph=True)


def test_leaf_raises(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    _, s = leaves_and_projections(problem)
    s[1][1] = s[1][1].detach().requires_grad_()
    with pytest.raises(ValueError, match=r"s_value\[1\]\[1\], which is a leaf of the graph"):
        loss_of(s, problem, kernel)
    s[1][1] = s[1][1].detach()
    with pytest.raises(ValueError, match=r"s_value\[1\]\[1\], which is without gradient"):
        loss_of(s, problem, kernel)


def test_shared_memory_raises(kernel: Backend) -> None:
    problem = make_problem([[(4, 3, 3), (4, 3, 3)]], device=kernel.device)
    _, s = leaves_and_projections(problem)
    with pytest.raises(ValueError, match="share no memory"):
        loss_of([[s[0][0], s[0][0]]], problem, kernel)
    problem.t[0][1] = s[0][0].detach()
    with pytest.raises(ValueError, match="share no memory"):
        loss_of(s, problem, kernel)


def test_teacher_maps_may_share_memory(kernel: Backend) -> None:
    problem = make_problem([[(4, 3, 3), (4, 3, 3)]], device=kernel.device)
    problem.t[0][1] = problem.t[0][0]
    leaves, s = leaves_and_projections(problem)
    torch.autograd.grad(loss_of(s, problem, kernel), leaves)


def test_strided_projection_raises(kernel: Backend) -> None:
    problem = make_problem([[(4, 3, 3)]], device=kernel.device)
    _, s = leaves_and_projections(problem)
    with pytest.raises(ValueError, match="dense projections"):
        loss_of([[s[0][0].repeat_interleave(2, 1)[:, ::2]]], problem, kernel)


def test_no_guard_without_gradient(kernel: Backend) -> None:
    problem = make_problem(SHAPES, device=kernel.device)
    with torch.no_grad():
        assert loss_of(problem.s, problem, kernel).isfinite()
