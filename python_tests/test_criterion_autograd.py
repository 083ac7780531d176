"""How the criterion behaves as a part of autograd and of trainers."""

from __future__ import annotations

import copy

import pytest
import torch
from criterion_problems import CASES, Case, converted, step
from served import CRITERION_SERVED, Backend
from tolerances import relative_error

SQUARE = CASES["square"]
# two student layers, which tests of frozen and accumulated maps need
SMALL = Case([6, 3], [4], [(4, 4), (2, 3)], [(4, 4)])


@pytest.fixture(params=CRITERION_SERVED, ids=lambda b: b.name)
def fused(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture
def square(fused: Backend) -> Case:
    return SMALL if fused.interpreted else SQUARE


def test_second_backward_gives_the_same_gradients(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    leaves = [*feat_s, *module.parameters()]
    loss = module(feat_s, feat_t).loss
    first = torch.autograd.grad(loss, leaves, torch.tensor(2.0, device=fused.device), retain_graph=True)
    second = torch.autograd.grad(loss, leaves, torch.tensor(-4.0, device=fused.device))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a * -2, b)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_kept_gradients_become_the_last_backwards(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    leaves = [*feat_s, *module.parameters()]
    loss = module(feat_s, feat_t).loss
    kept = {x.data_ptr() for x in loss.grad_fn.saved_tensors}
    retained = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert not kept & {x.data_ptr() for x in retained}
    before = [x.clone() for x in retained]
    loss.backward(torch.tensor(3.0, device=fused.device))
    assert {x.grad.data_ptr() for x in leaves} == kept
    for now, then, leaf in zip(retained, before, leaves, strict=True):
        assert torch.equal(now, then)
        assert torch.equal(leaf.grad, then * 3)


def test_gradients_accumulate(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device, torch.float64)
    feat_s, feat_t = square.maps(fused.device, torch.float64)
    for _ in range(2):
        # batch statistics do not depend on the running ones: the same loss twice
        module(feat_s, feat_t).loss.backward()
    once = step(module, feat_s, feat_t, upstream=2.0)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, once.tensors[name])
    torch.testing.assert_close(feat_s[1].grad, once.tensors["d_feat_s[1]"])


def test_second_derivative_is_refused(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    with pytest.raises(RuntimeError, match="use backend='reference'"):
        torch.autograd.grad(module(feat_s, feat_t).loss, feat_s, create_graph=True)


def test_frozen_parameters_and_maps(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    expected = step(module, feat_s, feat_t, upstream=1.0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".3." in name)
    feat_s[0].requires_grad_(False)
    module(feat_s, feat_t).loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, expected.tensors[name])
        else:
            assert parameter.grad is None
    assert feat_s[0].grad is None
    assert torch.equal(feat_s[1].grad, expected.tensors["d_feat_s[1]"])


def test_teacher_is_detached(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    feat_t = [x.requires_grad_() for x in feat_t]
    module(feat_s, feat_t).loss.backward()
    assert all(x.grad is None for x in feat_t)


def test_upstream_gradient_reaches_fp16_maps(fused: Backend, square: Case) -> None:
    """Gradients that underflow in fp16 are kept in fp32 until the scaler's factor is in them."""
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = ([(x.detach() * 1e-3).half() for x in side] for side in square.maps(fused.device))
    feat_s = [x.requires_grad_() for x in feat_s]
    scale = 2.0**24
    with torch.autocast(fused.device, torch.float16):
        loss = module.eval()(feat_s, feat_t).loss
    (loss * 1e-6 * scale).backward()
    exact_maps = [converted(x, torch.float64) for x in (feat_s, feat_t)]
    exact = step(square.module("reference", fused.device, torch.float64).eval(), *exact_maps, upstream=1e-6)
    for n, x in enumerate(feat_s):
        # in fp16 without the factor every element would have been zero
        assert not exact.tensors[f"d_feat_s[{n}]"].half().any()
        assert relative_error(x.grad.double() / scale, exact.tensors[f"d_feat_s[{n}]"]) < 5e-3


def test_nothing_but_gradients_is_kept(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    feat_s, feat_t = square.maps(fused.device)
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        module(feat_s, feat_t)
    assert sum(kept.values()) == sum(x.nbytes for x in (*feat_s, *module.parameters()))


def test_copies_and_pickles(fused: Backend, square: Case, tmp_path) -> None:
    module = square.module(fused.name, fused.device)
    maps = square.maps(fused.device)
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    assert torch.equal(loaded(*maps).loss, copy.deepcopy(module)(*maps).loss)


def test_compiles_without_graph_breaks_or_recompiles(fused: Backend, square: Case) -> None:
    module = square.module(fused.name, fused.device)
    eager = copy.deepcopy(module)
    head = torch.nn.Conv2d(6, 6, 1).to(fused.device)

    def run(
        criterion: torch.nn.Module, feat_s: list[torch.Tensor], feat_t: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        output = criterion([head(feat_s[0]), feat_s[1]], feat_t)
        return 3 * output.loss, output.weight, output.pair_mse

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            feat_s, feat_t = square.maps(fused.device, seed=seed)
            results = [f(m, feat_s, feat_t) for f, m in ((compiled, module), (run, eager))]
            torch.testing.assert_close(*results)
            losses = [loss for loss, *_ in results]
            gradients = [
                torch.autograd.grad(x, [*feat_s, *head.parameters(), *m.parameters()])
                for x, m in zip(losses, (module, eager), strict=True)
            ]
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b)
    for (name, a), (_, b) in zip(module.named_buffers(), eager.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    torch.compiler.reset()
