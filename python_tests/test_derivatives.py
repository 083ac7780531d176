"""Derivatives other than ``backward()``: right, or refused in a sentence, never zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import semckd_kernels as sk
from semckd_kernels import functional

BATCH = 3
Scalar = Callable[[Tensor], Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, V = rand(BATCH, 2, 2, 2), rand(BATCH, 2, 2, 2, seed=1)
Y, WEIGHT = rand(BATCH, 2, 2, 2, seed=2), rand(BATCH, 1, 1, seed=3).abs()


def criterion(backend: str | None) -> Scalar:
    torch.manual_seed(0)
    module = sk.SemCKD(4, [2], [2], backend=backend).double().eval()
    return lambda x: module([x], [Y]).loss


FUNCTIONS: dict[str, Callable[[str | None], Scalar]] = {
    "criterion": criterion,
    "loss module": lambda backend: lambda x: sk.SemCKDLoss(backend)([[x]], [[Y]], WEIGHT),
    "loss": lambda backend: lambda x: functional.semckd_loss([[x]], [[Y]], WEIGHT, backend=backend),
    "energy": lambda backend: lambda x: functional.semckd_loss_from_energy([[x]], [[Y]], WEIGHT, backend=backend),
    "target": lambda backend: lambda x: functional.semckd_loss([[Y]], [[x]], WEIGHT, backend=backend),
    "weight": lambda backend: (
        lambda x: functional.semckd_loss([[Y]], [[V]], x.flatten(1).mean(1).exp().view(-1, 1, 1), backend=backend)
    ),
    "pair_mse": lambda backend: lambda x: functional.pair_mse([[x]], [[Y]], backend=backend).square().sum(),
}


@pytest.fixture(params=FUNCTIONS)
def function(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Scalar]:
    monkeypatch.delenv("SEMCKD_BACKEND", raising=False)
    return FUNCTIONS[request.param]


def dual(f: Scalar) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(X, V))).tangent


def along(f: Scalar) -> Scalar:
    """f along a line, whose second derivative is a number."""
    return lambda a: f(X + a * V)


ZERO = torch.zeros((), dtype=torch.float64)
FORWARD: dict[str, Callable[[Scalar], Any]] = {
    "jvp": lambda f: torch.func.jvp(f, (X,), (V,))[1],
    "dual numbers": dual,
    "jacfwd": lambda f: torch.func.jacfwd(along(f))(ZERO),
    "hessian": lambda f: torch.func.hessian(along(f))(ZERO),
    "jvp of grad": lambda f: torch.func.jvp(torch.func.grad(f), (X,), (V,))[1],
    "grad of jvp": lambda f: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (V,))[1])(X),
    "jvp of vmap": lambda f: torch.func.jvp(torch.func.vmap(f), (X[None],), (V[None],))[1],
    "linearize": lambda f: torch.func.linearize(f, X)[1](V),
    "gradcheck": lambda f: torch.autograd.gradcheck(f, X.clone().requires_grad_(), check_forward_ad=True),
}
DOUBLE: dict[str, Callable[[Scalar], Any]] = {
    "functional.jvp": lambda f: torch.autograd.functional.jvp(f, X, V)[1],
    "functional.hvp": lambda f: torch.autograd.functional.hvp(f, X, V)[1],
}
REVERSE: dict[str, Callable[[Scalar], Any]] = {
    "grad": lambda f: torch.func.grad(f)(X),
    "vjp": lambda f: torch.func.vjp(f, X)[1](torch.tensor(2.0, dtype=torch.float64)),
    "jacrev": lambda f: torch.func.jacrev(lambda x: torch.stack([f(x), x.sum()]))(X),
    "grad of grad": lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(X),
    "vmap": lambda f: torch.func.vmap(f)(torch.stack([X, V])),
    "per-sample gradients": lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([X, V])),
    "grad of vmap": lambda f: torch.func.grad(lambda x: torch.func.vmap(f)(torch.stack([x, 2 * x])).sum())(X),
}


@pytest.mark.parametrize("kind", FORWARD)
def test_forward_mode_is_refused(kind: str, function: Callable[[str | None], Scalar]) -> None:
    with pytest.raises(
        RuntimeError, match=r"for backward\(\) alone.* forward-mode .*use backend='reference' where you"
    ):
        FORWARD[kind](function(None))


@pytest.mark.parametrize("kind", DOUBLE)
def test_double_backward_is_refused(kind: str, function: Callable[[str | None], Scalar]) -> None:
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*use backend='reference'"):
        DOUBLE[kind](function(None))


@pytest.mark.parametrize("kind", [*FORWARD, *DOUBLE])
def test_the_reference_has_them_all(kind: str, function: Callable[[str | None], Scalar]) -> None:
    if kind == "linearize" and function is criterion:
        pytest.skip("torch.func.linearize asks for parameters without gradient")
    result = {**FORWARD, **DOUBLE}[kind](function("reference"))
    assert torch.as_tensor(result, dtype=torch.float64).abs().max() > 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", REVERSE)
def test_transforms_are_right(kind: str, function: Callable[[str | None], Scalar]) -> None:
    expected = REVERSE[kind](function("reference"))
    torch.testing.assert_close(REVERSE[kind](function(None)), expected)


def test_transforms_are_refused_where_kernels_are_asked_for(function: Callable[[str | None], Scalar]) -> None:
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot serve .*torch.func transform"):
        torch.func.grad(function("cpu"))(X)


def test_a_dual_level_that_does_not_concern_it(function: Callable[[str | None], Scalar]) -> None:
    with forward_ad.dual_level():
        forward_ad.make_dual(X, V)
        torch.testing.assert_close(function(None)(X.clone()), function("reference")(X.clone()))


def test_tangents_of_parameters() -> None:
    torch.manual_seed(0)
    module = sk.SemCKD(4, [2], [2]).double().eval()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    for name in ("regressor00.regressor.4.bias", "key_weight0.linear2.weight"):
        with forward_ad.dual_level():
            changed = {**parameters, name: forward_ad.make_dual(parameters[name], parameters[name])}
            with pytest.raises(RuntimeError, match="forward-mode"):
                torch.func.functional_call(module, changed, ([X], [Y]))


def test_tangents_of_the_teacher_are_detached() -> None:
    with forward_ad.dual_level():
        module = sk.SemCKD(4, [2], [2]).double().eval()
        loss = module([X], [forward_ad.make_dual(Y, V)]).loss
        assert forward_ad.unpack_dual(loss).tangent is None


def batched_gradients(backend: str | None, batch: Callable[..., Any]) -> list[Tensor]:
    torch.manual_seed(0)
    module = sk.SemCKD(4, [2], [2], backend=backend).double()
    x, y, weight = (t.clone().requires_grad_() for t in (X, Y, WEIGHT))
    results = []
    for output, leaves in (
        (torch.stack([module([x], [Y]).loss, x.mean()]), [x, *module.parameters()]),
        (functional.semckd_loss([[x]], [[y]], weight, backend=backend), [x, y, weight]),
        (functional.semckd_loss([[x]], [[Y]], weight.detach(), backend=backend), [x]),
        (functional.semckd_loss_from_energy([[x]], [[Y]], weight, backend=backend), [x, weight]),
        (functional.pair_mse([[x]], [[y]], backend=backend), [x, y]),
        (functional.pair_mse([[X]], [[y]], backend=backend), [y]),
    ):
        results += batch(output, leaves, rand(4, *output.shape))
    return results


def is_grads_batched(output: Tensor, leaves: list[Tensor], upstream: Tensor) -> Any:
    return torch.autograd.grad(output, leaves, upstream, is_grads_batched=True)


def vmap(output: Tensor, leaves: list[Tensor], upstream: Tensor) -> Any:
    return torch.vmap(lambda v: torch.autograd.grad(output, leaves, v, retain_graph=True))(upstream)


def one_by_one(output: Tensor, leaves: list[Tensor], upstream: Tensor) -> Any:
    rows = [torch.autograd.grad(output, leaves, v, retain_graph=True) for v in upstream]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("batch", [is_grads_batched, vmap])
def test_batches_of_upstream_gradients(batch: Callable[..., Any]) -> None:
    got, expected = batched_gradients(None, batch), batched_gradients("reference", one_by_one)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_batches_are_refused_in_place() -> None:
    x = X.clone().requires_grad_() * 1
    loss = functional.semckd_loss([[x]], [[Y]], WEIGHT, inplace_backward=True)
    kept = x.detach().clone()
    with pytest.raises(RuntimeError, match="inplace_backward=True serves one upstream gradient at a time"):
        torch.autograd.grad(loss, x, torch.ones(2, dtype=torch.float64), is_grads_batched=True)
    assert torch.equal(x, kept)


def test_gradcheck_of_batches() -> None:
    torch.manual_seed(0)
    module = sk.SemCKD(4, [2], [2]).double().eval()
    leaf = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(module)([x], [Y]).loss, leaf, check_batched_grad=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_compiled_transforms() -> None:
    f = FUNCTIONS["loss"](None)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: torch.func.grad(f)(x), backend="eager")
    torch.testing.assert_close(compiled(X), torch.func.grad(FUNCTIONS["loss"]("reference"))(X))
    for function in (f, criterion(None)):
        torch.compiler.reset()
        with pytest.raises(RuntimeError, match="forward-mode"):
            torch.compile(lambda x, f=function: torch.func.jvp(f, (x,), (V,))[1], backend="eager")(X)
    torch.compiler.reset()
