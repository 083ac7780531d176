"""The registered operators: what the kernels compute, as torch.compile and autograd see it.

Two namespaces hold the same five operators (schemas in ``csrc/ops/pair_loss.cpp``):

=====================  ==================================================================================
``semckd``             C++ (CPU) and CUDA C++, in the shared libraries of the package
``semckd_triton``      Triton, on any device Triton serves
=====================  ==================================================================================

Each gets a fake (shapes without data) and an autograd formula here. Eager code goes through the leaner
``autograd.Function`` of :mod:`semckd_kernels.functional` instead; the gradients of both are those of :mod:`.gradients`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends import libraries
from ..dtypes import acc_dtype
from ..layout import packed_strides
from . import gradients

SCHEMAS = {
    "pair_loss": "(Tensor[] s, Tensor[] t, Tensor weight, bool softmax) -> (Tensor loss, Tensor pair_mse)",
    "pair_loss_backward": "(Tensor d_loss, Tensor[] s, Tensor[] t, Tensor weight, Tensor pair_mse, bool softmax, "
    "bool need_s, bool need_t) -> (Tensor[] d_s, Tensor[] d_t, Tensor d_weight)",
    "pair_loss_backward_": "(Tensor d_loss, Tensor(a!)[] s, Tensor[] t, Tensor weight, Tensor pair_mse, bool softmax, "
    "bool need_t) -> (Tensor[] d_t, Tensor d_weight)",
    "pair_mse": "(Tensor[] s, Tensor[] t) -> Tensor pair_mse",
    "pair_mse_backward": "(Tensor d_pair_mse, Tensor[] s, Tensor[] t, bool need_s, bool need_t) "
    "-> (Tensor[] d_s, Tensor[] d_t)",
}

DOUBLE_BACKWARD = (
    "the gradient of SemCKD's pair loss cannot be differentiated again: its kernels have no second derivative; "
    "use backend='reference' where you need one"
)


def resolve(backend: str | None, device_type: str) -> str:
    """The backend that serves, as :func:`semckd_kernels.backends.resolve`; its operators are there from now on."""
    name = backends.resolve(backend, device_type)
    if name == "triton":
        _define_triton()
    return name


# a constant to torch.compile, as the function that it calls
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def operators(backend: str) -> Any:
    """The operators of a backend that was resolved."""
    return torch.ops.semckd_triton if backend == "triton" else torch.ops.semckd


def register_compiled() -> None:
    """Attaches fakes and autograd to the compiled operators, once; without the library there are none."""
    if libraries.load_compiled() is None:
        _register("semckd")


@functools.cache
def _define_triton() -> None:
    """Defines the operators in Triton, which must be there, once a process."""
    kernels = backends.triton_pair_loss()

    library = torch.library.Library("semckd_triton", "DEF")
    implementations = {
        "pair_loss": kernels.pair_loss_fwd,
        "pair_loss_backward": kernels.pair_loss_bwd,
        # the operator returns no d_s: the maps hold it
        "pair_loss_backward_": lambda *args: kernels.pair_loss_bwd_(*args)[1:],
        "pair_mse": kernels.pair_mse_fwd,
        "pair_mse_backward": kernels.pair_mse_bwd,
    }
    for name, implementation in implementations.items():
        library.define(name + SCHEMAS[name])
        library.impl(name, implementation, "CompositeExplicitAutograd")
    _kept.append(library)
    _register("semckd_triton")


# a torch.library.Library undoes its definitions when it is collected
_kept: list[torch.library.Library] = []


def _gradients(of: Sequence[Tensor], s: Sequence[Tensor], needed: bool) -> list[Tensor]:
    if not needed:
        return []
    return [x.new_empty_strided(x.shape, packed_strides(s_q)) for x, s_q in zip(of, s, strict=True)]


def _register(namespace: str) -> None:
    """Attaches fakes and autograd formulas to the operators of one namespace."""
    _register_fakes(namespace)
    _register_autograd(namespace)


def _register_fakes(namespace: str) -> None:
    def fake(name: str) -> Any:
        return torch.library.register_fake(f"{namespace}::{name}")

    @fake("pair_loss")
    def _(s: list[Tensor], t: list[Tensor], weight: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
        acc = acc_dtype(s[0].dtype)
        return weight.new_empty((), dtype=acc), weight.new_empty(weight.shape, dtype=acc)

    @fake("pair_loss_backward")
    def _(
        d_loss: Tensor,
        s: list[Tensor],
        t: list[Tensor],
        weight: Tensor,
        pair_mse: Tensor,
        softmax: bool,
        need_s: bool,
        need_t: bool,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        return _gradients(s, s, need_s), _gradients(t, s, need_t), weight.new_empty(weight.shape)

    @fake("pair_loss_backward_")
    def _(
        d_loss: Tensor,
        s: list[Tensor],
        t: list[Tensor],
        weight: Tensor,
        pair_mse: Tensor,
        softmax: bool,
        need_t: bool,
    ) -> tuple[list[Tensor], Tensor]:
        return _gradients(t, s, need_t), weight.new_empty(weight.shape)

    @fake("pair_mse")
    def _(s: list[Tensor], t: list[Tensor]) -> Tensor:
        return s[0].new_empty((s[0].shape[0], len(s)), dtype=acc_dtype(s[0].dtype))

    @fake("pair_mse_backward")
    def _(
        d_pair_mse: Tensor, s: list[Tensor], t: list[Tensor], need_s: bool, need_t: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        return _gradients(s, s, need_s), _gradients(t, s, need_t)


def _register_autograd(namespace: str) -> None:
    ops = getattr(torch.ops, namespace)

    def call(op: Any, *args: Any) -> Any:
        return op(*args)

    def needs(ctx: Any) -> tuple[bool, bool]:
        # a list argument's entry is a list of flags
        of_s, of_t = (any(x) if isinstance(x, (list, tuple)) else bool(x) for x in ctx.needs_input_grad[:2])
        return of_s, of_t

    def save_pair_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        s, t, weight, ctx.softmax = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, output[1], *s, *t)

    def pair_loss_formula(ctx: Any, d_loss: Tensor, _d_pair_mse: Tensor | None) -> tuple[Any, ...]:
        weight, pair_mse, *maps = ctx.saved_tensors
        count = len(maps) // 2
        saved = gradients.Saved(maps[:count], maps[count:], weight, pair_mse, ctx.softmax)
        return *gradients.of_pair_loss(call, ops, saved, d_loss, needs(ctx)), None

    def save_pair_mse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, t = inputs
        ctx.save_for_backward(*s, *t)

    def pair_mse_formula(ctx: Any, d_pair_mse: Tensor) -> tuple[Any, ...]:
        maps = ctx.saved_tensors
        found = gradients.of_pair_mse(call, ops, maps, d_pair_mse, needs(ctx))
        return found[: len(maps) // 2], found[len(maps) // 2 :]

    def refuse(ctx: Any, *_gradients: Any) -> None:
        raise RuntimeError(DOUBLE_BACKWARD)

    def autograd(name: str, formula: Any, setup_context: Any = None) -> None:
        torch.library.register_autograd(f"{namespace}::{name}", formula, setup_context=setup_context)

    autograd("pair_loss", pair_loss_formula, save_pair_loss)
    autograd("pair_mse", pair_mse_formula, save_pair_mse)
    autograd("pair_loss_backward", refuse)
    autograd("pair_mse_backward", refuse)
