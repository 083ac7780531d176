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

from ..backends import criterion_backend
from ..derivatives import is_batch_of_gradients
from ..stages.backend import Backend, kept_dtype
from ..stages.workspace import Workspace, borrowed
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


def _backend(name: str, device: torch.device, workspace: Workspace, options: Options) -> Backend:
    return criterion_backend(name, device, workspace, options.map_dtype, options.acc_dtype, options.need_grad)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _run(*arguments: Any) -> tuple[Any, ...]:
    call = Call(*arguments)
    device = call.feat_s[0].device
    # kernels launch, and streams part, on the current device
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    # types are chosen here, product by product; autocast would choose again
    with current, torch.no_grad(), torch.autocast(device.type, enabled=False), borrowed(device) as workspace:
        return tuple(run(_backend(call.backend, device, workspace, call.options), call.inputs, call.options))


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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    call, (_, weight, mse, statistics, *gradients) = Call(*inputs), output
    ctx.mark_non_differentiable(weight, mse, *statistics, *(x for group in gradients for x in group))
    ctx.set_materialize_grads(False)
    groups = [call.feat_s, call.embedding, call.projection]
    ctx.dtypes = [[x.dtype for x in group] for group in groups]
    # what a frozen parameter or map would get is not kept
    ctx.needed = [
        [x.requires_grad and bool(given) for x in group] for group, given in zip(groups, gradients, strict=True)
    ]
    ctx.missing = [[None] * len(call.feat_t), [None] * len(call.running)]
    wanted = []
    for flags, given in zip(ctx.needed, gradients, strict=True):
        wanted += [g for flag, g in zip(flags, given, strict=False) if flag]
    ctx.save_for_backward(*wanted)


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
        torch._foreach_mul_(members, d_loss)
    return kept


def _backward(ctx: Any, d_loss: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(DOUBLE_BACKWARD)
    finished = iter([] if d_loss is None else _scaled(list(ctx.saved_tensors), d_loss))
    gradients: list[list[Tensor | None]] = []
    for flags, dtypes in zip(ctx.needed, ctx.dtypes, strict=True):
        group: list[Tensor | None] = []
        for flag, dtype in zip(flags, dtypes, strict=True):
            group.append(next(finished).to(dtype) if flag and d_loss is not None else None)
        gradients.append(group)
    d_feat_s, d_embedding, d_projection = gradients
    d_feat_t, d_running = ctx.missing
    given = d_feat_s, d_feat_t, d_embedding, d_projection, d_running
    return *given, *(None,) * (len(Call._fields) - len(given))


torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)


def criterion(call: Call) -> Result:
    """Calls the operator."""
    return Result(*torch.ops.semckd_criterion.run(*(list(x) if isinstance(x, (list, tuple)) else x for x in call)))
