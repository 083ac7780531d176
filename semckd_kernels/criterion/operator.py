"""The fused criterion as a registered operator, ``semckd_criterion::run``, and its autograd formula.

The operator is functional: batch statistics come out as results, and running ones are updated by the module. Its
gradients are results as well, so that the backward is a multiplication by the upstream gradient: in their own memory
when autograd is about to let go of them, in new memory where a later backward will ask again (``retain_graph``).
``torch.compile`` sees one operator forward and pointwise products backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import criterion_backend, scale_
from ..derivatives import is_batch_of_gradients
from ..stages.backend import Backend, kept_dtype
from .call import Call
from .engine import Options, Result, run

NAME = "semckd_criterion::run"

torch.library.define(
    NAME,
    "(Tensor[] feat_s, Tensor[] feat_t, Tensor[] embedding, Tensor[] projection, Tensor[] running, float soft, "
    "float[] eps, bool[] batch_statistics, ScalarType map_dtype, bool need_grad, str backend) -> "
    "(Tensor loss, Tensor weight, Tensor pair_mse, Tensor[] statistics, Tensor[] d_feat_s, Tensor[] d_embedding, "
    "Tensor[] d_projection)",
)

DOUBLE_BACKWARD = (
    "the gradients of the fused criterion are computed in its forward pass and cannot be differentiated again; "
    "use backend='reference' where you need a second derivative"
)


def _backend(name: str, device: torch.device, options: Options) -> Backend:
    return criterion_backend(name, device, options.map_dtype, options.acc_dtype, options.need_grad)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _run(*arguments: Any) -> tuple[Any, ...]:
    call = Call(*arguments)
    device = call.feat_s[0].device
    # kernels launch, and streams part, on the current device
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    # types are chosen here, product by product; autocast would choose again
    with current, torch.no_grad(), torch.autocast(device.type, enabled=False):
        return tuple(run(_backend(call.backend, device, call.options), call.inputs, call.options))


@torch.library.register_fake(NAME)
def _fake(*arguments: Any) -> tuple[Any, ...]:
    call = Call(*arguments)
    first = call.feat_s[0]
    shape = first.shape[0], len(call.feat_s), len(call.feat_t)

    def new(*shape: int) -> Tensor:
        return first.new_empty(shape, dtype=call.options.acc_dtype)

    def kept(parameters: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(x, dtype=kept_dtype(x.dtype)) for x in parameters] if call.need_grad else []

    channels = [len(x) for p in call.projections for x in (p.gamma1, p.gamma2)]
    used = [c for c, from_batch in zip(channels, call.batch_statistics, strict=True) if from_batch]
    statistics = [new(c) for c in used for _ in range(2)]
    return new(), new(*shape), new(*shape), statistics, kept(call.feat_s), kept(call.embedding), kept(call.projection)


class _Criterion(torch.autograd.Function):
    """The operator, differentiable. Its flat inputs are the call's tensors that may want gradients, in order.

    Only the loss has a gradient, so only the loss passes through autograd; the other results come out beside it. What
    ``torch.library.register_autograd`` makes of a formula would flatten, wrap and compare lists of all tensors.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, results: list[Any], *inputs: Tensor) -> Tensor:
        results.extend(_below_autograd(call))
        gradients = [x for group in results[4:] for x in group] if call.need_grad else [None] * len(inputs)
        # what a frozen parameter or map would get is not kept
        ctx.needed = [needed and call.need_grad for needed in ctx.needs_input_grad[2:]]
        ctx.dtypes = [x.dtype for x in inputs]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(x for needed, x in zip(ctx.needed, gradients, strict=True) if needed))
        loss: Tensor = results[0]
        return loss

    @staticmethod
    def backward(ctx: Any, *d_losses: Tensor | None) -> tuple[Tensor | None, ...]:
        (d_loss,) = d_losses
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(DOUBLE_BACKWARD)
        if d_loss is None:
            return (None,) * (2 + len(ctx.needed))
        finished = iter(_scaled(list(ctx.saved_tensors), d_loss))
        gradients: list[Tensor | None] = []
        for needed, dtype in zip(ctx.needed, ctx.dtypes, strict=True):
            x = next(finished) if needed else None
            gradients.append(x if x is None or x.dtype == dtype else x.to(dtype))
        return None, None, *gradients


def _below_autograd(call: Call) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.semckd_criterion.run(*call)


@torch.library.impl(NAME, "Autograd")
def _autograd(*arguments: Any) -> tuple[Any, ...]:
    call = Call(*arguments)
    inputs = [*call.feat_s, *call.embedding, *call.projection]
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return tuple(_below_autograd(call))
    results: list[Any] = []
    loss = _Criterion.apply(call, results, *inputs)
    return loss, *results[1:]


def _scaled(kept: list[Tensor], d_loss: Tensor) -> list[Tensor]:
    """``kept`` times the upstream gradient; in place where nobody will ask for them again."""
    # a tracer's tensors are of a type of its own, and tracers have no use for memory that changes
    is_traced = torch.compiler.is_compiling() or any(type(x) is not Tensor for x in kept)
    if is_traced or is_batch_of_gradients(d_loss) or torch._C._autograd._get_current_graph_task_keep_graph():
        return [x * d_loss for x in kept]
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for x in kept:
        by_type.setdefault(x.dtype, []).append(x)
    for members in by_type.values():
        # over two types it would launch once a tensor
        scale_(members, d_loss)
    return kept


def criterion(call: Call) -> Result:
    """Calls the operator."""
    return Result(*torch.ops.semckd_criterion.run(*(list(x) if isinstance(x, (list, tuple)) else x for x in call)))
