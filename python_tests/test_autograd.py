"""The loss as a citizen of PyTorch: operators, torch.compile, autocast, double backward."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.utils.checkpoint
from problems import make_problem
from served import Backend
from torch import Tensor, nn

import semckd_kernels as sk
from semckd_kernels import functional
from semckd_kernels.pair_loss import operators as ops

SHAPES = [[(4, 6, 5), (8, 3, 3)], [(2, 2, 2), (8, 3, 1)]]


def flat_problem(backend: Backend, requires_grad: bool = True):
    problem = make_problem(SHAPES, device=backend.device)
    s = [x.requires_grad_(requires_grad) for row in problem.s for x in row]
    t = [x for row in problem.t for x in row]
    return s, t, problem.weight.requires_grad_(requires_grad)


def test_opcheck(kernel: Backend) -> None:
    s, t, weight = flat_problem(kernel)
    # a number to schema, fake and autograd registration: what it does to results is tested elsewhere
    softmax = True
    torch.library.opcheck(kernel.operators.pair_loss.default, (s, t, weight, softmax))
    torch.library.opcheck(kernel.operators.pair_mse.default, (s, t))
    s, t, weight = flat_problem(kernel, requires_grad=False)
    loss, mse = kernel.operators.pair_loss(s, t, weight, softmax)
    torch.library.opcheck(kernel.operators.pair_loss_backward.default, (loss, s, t, weight, mse, softmax, True, True))
    torch.library.opcheck(kernel.operators.pair_mse_backward.default, (mse.flatten(1), s, t, True, False))
    # eager code alone writes in place: a compiler has no use for an operator that does
    in_place = kernel.operators.pair_loss_backward_.default
    torch.library.opcheck(
        in_place, (loss, s, t, weight, mse, softmax, True), test_utils=("test_schema", "test_faketensor")
    )


def test_fakes_promise_the_strides_that_come(kernel: Backend) -> None:
    # the compiler lays out its memory by what the fakes say
    last = torch.randn(3, 4, 6, 5, device=kernel.device).contiguous(memory_format=torch.channels_last)
    maps = [last, last.contiguous(), last[:, ::2], last[:, :2], last[:1].expand(3, 4, 6, 5), last[::2], last.mT]
    for batch in (3, 2):
        # one operator takes pairs of any shapes, of one batch
        pairs = [(x, y) for x in maps for y in maps if x.shape == y.shape and len(x) == batch]
        s, t = (list(side) for side in zip(*pairs, strict=True))
        mse = torch.ones(batch, len(pairs), device=kernel.device)
        torch.library.opcheck(kernel.operators.pair_mse_backward.default, (mse, s, t, True, True))


def test_operators_agree_with_the_eager_function(kernel: Backend) -> None:
    s, t, weight = flat_problem(kernel)
    loss, _ = kernel.operators.pair_loss(s, t, weight, True)
    eager = functional.semckd_loss_from_energy([s[:2], s[2:]], [t[:2], t[2:]], weight, backend=kernel.name)
    assert torch.equal(loss, eager)
    for a, b in zip(torch.autograd.grad(loss, [*s, weight]), torch.autograd.grad(eager, [*s, weight]), strict=True):
        assert torch.equal(a, b)


def test_schemas_agree() -> None:
    for name, schema in ops.SCHEMAS.items():
        assert str(getattr(torch.ops.semckd, name).default._schema) == f"semckd::{name}{schema}"


def compiler(backend: Backend) -> str:
    """Of the reference the graphs alone are of interest: it has no operator whose memory a compiler could lay out."""
    return "aot_eager" if backend.name == "reference" else "inductor"


@pytest.mark.parametrize("inplace", [False, True], ids=["fresh", "inplace"])
def test_compile_full_graph(backend: Backend, inplace: bool) -> None:
    criterion = sk.SemCKDLoss(backend.name, inplace_backward=inplace)

    def step(student: list[list[Tensor]], teacher: list[list[Tensor]], weight: Tensor) -> Tensor:
        return criterion([[x * 2 for x in row] for row in student], teacher, weight.softmax(-1))

    problem = make_problem(SHAPES, device=backend.device)
    student = [[x.requires_grad_() for x in row] for row in problem.s]
    leaves = [*chain.from_iterable(student), problem.weight.requires_grad_()]
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler(backend))
    expected = torch.autograd.grad(step(student, problem.t, problem.weight), leaves)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            got = torch.autograd.grad(compiled(student, problem.t, problem.weight), leaves)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


def test_compile_of_energy_and_pair_mse(backend: Backend) -> None:
    def step(s: list[list[Tensor]], t: list[list[Tensor]], energy: Tensor) -> Tensor:
        loss, mse = functional.semckd_loss_from_energy(s, t, energy, backend=backend.name, return_pair_mse=True)
        return loss + mse.mean() + functional.pair_mse(s, t, backend=backend.name).square().sum()

    problem = make_problem(SHAPES, device=backend.device)
    s = [[x.requires_grad_() for x in row] for row in problem.s]
    leaves = [*chain.from_iterable(s), problem.weight.requires_grad_()]
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler(backend))(s, problem.t, problem.weight)
    eager = step(s, problem.t, problem.weight)
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(torch.autograd.grad(compiled, leaves), torch.autograd.grad(eager, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_double_backward_is_refused(kernel: Backend) -> None:
    s, t, weight = flat_problem(kernel)
    loss = functional.semckd_loss([s[:2], s[2:]], [t[:2], t[2:]], weight, backend=kernel.name)
    gradients = torch.autograd.grad(loss, [*s, weight], create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*backend='reference'"):
        gradients[0].square().sum().backward()
    mse = functional.pair_mse([s[:2], s[2:]], [t[:2], t[2:]], backend=kernel.name)
    gradients = torch.autograd.grad(mse.sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradients[0].square().sum().backward()


def test_reference_differentiates_twice() -> None:
    s, t, weight = flat_problem(Backend("reference", "cpu"))
    loss = functional.semckd_loss([s[:2], s[2:]], [t[:2], t[2:]], weight, backend="reference")
    (gradient,) = torch.autograd.grad(loss, s[:1], create_graph=True)
    gradient.square().sum().backward()
    assert s[0].grad.abs().max() > 0


def test_second_backward_gives_the_same(backend: Backend) -> None:
    s, t, weight = flat_problem(backend)
    loss = functional.semckd_loss([s[:2], s[2:]], [t[:2], t[2:]], weight, backend=backend.name)
    first = torch.autograd.grad(loss, [*s, weight], retain_graph=True)
    second = torch.autograd.grad(loss, [*s, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_map_changed_before_backward_raises(backend: Backend) -> None:
    s, t, weight = flat_problem(backend)
    loss = functional.semckd_loss([s[:2], s[2:]], [t[:2], t[2:]], weight, backend=backend.name)
    t[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast(backend: Backend) -> None:
    torch.manual_seed(0)
    project = nn.Conv2d(3, 8, 1, bias=False).to(backend.device)
    x, target = torch.randn(2, 2, 3, 4, 4, device=backend.device)[0], torch.randn(2, 8, 4, 4, device=backend.device)
    weight = torch.ones(2, 1, 1, device=backend.device)

    def gradient(name: str) -> Tensor:
        with torch.autocast(backend.device, torch.bfloat16):
            s = project(x)
            assert s.dtype == torch.bfloat16
            loss = functional.semckd_loss([[s]], [[target]], weight, backend=name)
        assert loss.dtype == torch.float32
        return torch.autograd.grad(loss, project.weight)[0]

    torch.testing.assert_close(gradient(backend.name), gradient("reference"), rtol=1e-2, atol=1e-4)


def test_checkpointing(backend: Backend) -> None:
    s, t, weight = flat_problem(backend)

    def loss(weight: Tensor, *maps: Tensor) -> Tensor:
        return functional.semckd_loss([list(maps[:2]), list(maps[2:])], [t[:2], t[2:]], weight, backend=backend.name)

    expected = torch.autograd.grad(loss(weight, *s), [weight, *s])
    got = torch.autograd.grad(torch.utils.checkpoint.checkpoint(loss, weight, *s, use_reentrant=False), [weight, *s])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
