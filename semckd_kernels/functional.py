"""SemCKD's pair loss as functions: checks, choice of a backend, and autograd.

Notation (SPEC of the method: Chen et al., AAAI 2021): B samples, S student and T teacher layers; pair ``(i, j)``
compares the projection ``s_value[i][j]`` of student layer i with the map ``f_target[i][j]`` of teacher layer j.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .backends import reference
from .derivatives import is_batch_of_gradients, is_forward_mode, is_transformed
from .pair_loss import gradients
from .pair_loss.checks import NestedMaps, Pairs, check_pairs, check_weight
from .pair_loss.inplace import check_overwritable, overwrite_once
from .pair_loss.operators import operators, resolve

FORWARD_MODE = (
    "the gradient of SemCKD's pair loss is computed for backward() alone, and forward-mode derivatives "
    "(torch.func.jvp, dual numbers) are not: its kernels have none; use backend='reference' where you need one"
)

__all__ = ["pair_mse", "semckd_loss", "semckd_loss_from_energy"]


def _run(op: Any, *args: Any) -> Any:
    """Calls an operator from inside an ``autograd.Function``.

    Its registered autograd formula is passed by, since it has no work to do in there, unless the call itself is to
    be differentiated (``create_graph=True``): then the formula is what refuses.
    """
    if torch.is_grad_enabled():
        return op.default(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op.default(*args)


class _PairLoss(torch.autograd.Function):
    """The eager path around ``ops.pair_loss``: half the overhead of the registered autograd formula.

    ``maps`` are those that may get a gradient: the Q student projections and, unless ``frozen`` holds them, the Q
    teacher maps. Autograd takes its time over each of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        namespace: Any,
        softmax: bool,
        inplace: bool,
        frozen: Sequence[Tensor] | None,
        weight: Tensor,
        *maps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        t = frozen or maps[len(maps) // 2 :]
        s = maps[: len(t)]
        loss, mse = _run(namespace.pair_loss, s, t, weight, softmax)
        ctx.namespace, ctx.softmax, ctx.inplace, ctx.consumed = namespace, softmax, inplace, False
        ctx.save_for_backward(weight, mse, *s, *t)
        ctx.mark_non_differentiable(mse)
        # or autograd would make zeros for the gradient that mse does not have
        ctx.set_materialize_grads(False)
        return loss, mse

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, _d_mse: Tensor | None) -> tuple[Any, ...]:
        if d_loss is None:
            return (None,) * len(ctx.needs_input_grad)
        if ctx.inplace:
            if is_batch_of_gradients(d_loss):
                raise RuntimeError(
                    "inplace_backward=True serves one upstream gradient at a time; use False for a batch"
                )
            overwrite_once(ctx)
        if is_batch_of_gradients(d_loss):
            # the gradients for 1, times each of them
            of_one = _PairLoss._gradients(ctx, torch.ones(d_loss.shape, dtype=d_loss.dtype, device=d_loss.device))
            return tuple(None if g is None else g * d_loss.to(g.dtype) for g in of_one)
        return _PairLoss._gradients(ctx, d_loss)

    @staticmethod
    def _gradients(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:
        weight, mse, *maps = ctx.saved_tensors
        count = len(maps) // 2
        saved = gradients.Saved(maps[:count], maps[count:], weight, mse, ctx.softmax)
        flags = ctx.needs_input_grad[5:]
        needs = any(flags[:count]), any(flags[count:])
        if ctx.inplace:
            d_s, d_t, d_weight = gradients.over_projections(_run, ctx.namespace, saved, d_loss, needs[1])
            # other readers of these tensors in the graph now raise instead of reading gradients
            torch.autograd.graph.increment_version(saved.s)
        else:
            d_s, d_t, d_weight = gradients.of_pair_loss(_run, ctx.namespace, saved, d_loss, needs)
        # frozen teacher maps are no inputs
        return None, None, None, None, d_weight, *d_s, *d_t[: len(flags) - count]


def _serving(backend: str | None, pairs: Pairs, *others: Tensor) -> str:
    """The backend of a call. Transforms of torch.func know nothing of kernels: the reference serves them.

    Raises:
        RuntimeError: forward-mode derivatives are wanted, or a transform is at work and kernels were asked for.
    """
    name = resolve(backend, pairs.device.type)
    if name == "reference":
        return name
    if is_forward_mode(chain(pairs.s, pairs.t, others)):
        raise RuntimeError(FORWARD_MODE)
    if is_transformed():
        if backend is not None or os.environ.get("SEMCKD_BACKEND"):
            raise RuntimeError(
                f"the backend '{name}' cannot serve under a torch.func transform (grad, vjp, vmap, ...); use "
                f"backend='reference' there"
            )
        return "reference"
    return name


def _pair_loss(
    pairs: Pairs, weight: Tensor, softmax: bool, backend: str | None, return_pair_mse: bool, inplace: bool
) -> Tensor | tuple[Tensor, Tensor]:
    name = _serving(backend, pairs, weight)
    if name == "reference":
        loss, mse = reference.pair_loss(pairs.s, pairs.t, weight, softmax)
        mse = mse.detach()
    elif torch.compiler.is_compiling():
        # the compiler plans memory itself, so there is nothing for inplace to save
        loss, mse = operators(name).pair_loss(pairs.s, pairs.t, weight, softmax)
    else:
        if inplace and torch.is_grad_enabled():
            check_overwritable(pairs)
        if any(x.requires_grad for x in pairs.t):
            frozen, maps = None, pairs.s + pairs.t
        else:
            frozen, maps = pairs.t, pairs.s
        loss, mse = _PairLoss.apply(operators(name), softmax, inplace, frozen, weight, *maps)
    return (loss, mse) if return_pair_mse else loss


# fmt: off
@overload
def semckd_loss(s_value: NestedMaps, f_target: NestedMaps, weight: Tensor, *, backend: str | None = ..., return_pair_mse: Literal[False] = ..., inplace_backward: bool = ...) -> Tensor: ...  # noqa: E501
@overload
def semckd_loss(s_value: NestedMaps, f_target: NestedMaps, weight: Tensor, *, backend: str | None = ..., return_pair_mse: Literal[True], inplace_backward: bool = ...) -> tuple[Tensor, Tensor]: ...  # noqa: E501
# fmt: on
def semckd_loss(
    s_value: NestedMaps,
    f_target: NestedMaps,
    weight: Tensor,
    *,
    backend: str | None = None,
    return_pair_mse: bool = False,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Weighted squared error of all student projections against all teacher maps, in one kernel.

    .. math::
        L = \frac{1}{B S} \sum_{b,i,j} \alpha_{bij} D_{bij}, \qquad
        D_{bij} = \frac{1}{N_{ij}} \lVert s_{ij}[b] - t_{ij}[b] \rVert^2, \qquad \alpha = \text{weight}

    Args:
        s_value: S lists of T student projections, each ``[B, C_j, h_ij, w_ij]`` (any ``[B, ...]`` will do).
        f_target: S lists of T teacher maps of the same shapes. One that requires gradient gets it.
        weight: ``[B, S, T]``, any real numbers; usually :class:`semckd_kernels.SelfA`'s attention.
        backend: see :func:`semckd_kernels.available_backends`; None takes the fastest.
        return_pair_mse: also return ``D``, ``[B, S, T]``, without gradient.
        inplace_backward: write the gradients of the projections over the projections. Saves their memory and half
            of the backward's time; the projections then hold gradients after ``backward()``. They must be results
            of the graph (not leaves), dense and disjoint in memory, and backward can run once. Without effect under
            ``torch.compile``, which plans memory itself, and with ``backend="reference"``.

    Types: maps may be fp32, fp16, bf16 or fp64 and differ from each other. Sums are kept in fp32 (fp64 as soon as
    one map is fp64), and loss and ``D`` are returned in that type. Gradients have the type of what they belong to.

    Returns:
        The scalar loss, or ``(loss, D)``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message says which one and what came.
        RuntimeError: the backend asked for cannot serve these tensors.

    Example:
        >>> import torch
        >>> from semckd_kernels.functional import semckd_loss
        >>> s = [[torch.randn(8, 16, 4, 4, requires_grad=True) for _ in range(3)] for _ in range(2)]
        >>> t = [[torch.randn(8, 16, 4, 4) for _ in range(3)] for _ in range(2)]
        >>> loss = semckd_loss(s, t, torch.full((8, 2, 3), 1 / 3))
        >>> loss.backward()
        >>> s[0][0].grad.shape
        torch.Size([8, 16, 4, 4])

    Source: Chen et al., AAAI 2021, "Semantic Calibration" (the loss of feature maps).
    """
    pairs = check_pairs(s_value, f_target)
    weight = check_weight("weight", weight, pairs)
    return _pair_loss(pairs, weight, False, backend, return_pair_mse, inplace_backward)


# fmt: off
@overload
def semckd_loss_from_energy(s_value: NestedMaps, f_target: NestedMaps, energy: Tensor, *, backend: str | None = ..., return_pair_mse: Literal[False] = ..., inplace_backward: bool = ...) -> Tensor: ...  # noqa: E501
@overload
def semckd_loss_from_energy(s_value: NestedMaps, f_target: NestedMaps, energy: Tensor, *, backend: str | None = ..., return_pair_mse: Literal[True], inplace_backward: bool = ...) -> tuple[Tensor, Tensor]: ...  # noqa: E501
# fmt: on
def semckd_loss_from_energy(
    s_value: NestedMaps,
    f_target: NestedMaps,
    energy: Tensor,
    *,
    backend: str | None = None,
    return_pair_mse: bool = False,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r""":func:`semckd_loss` from attention energies: the softmax over teacher layers is part of the kernel.

    .. math:: \alpha_{bij} = \frac{\exp e_{bij}}{\sum_k \exp e_{bik}}

    Args:
        energy: ``[B, S, T]``, before the softmax over T. Its gradient comes out of the backward kernel:
            :math:`d e_{bij} = \alpha_{bij} (d\alpha_{bij} - \sum_k \alpha_{bik}\, d\alpha_{bik})`.

    All else as :func:`semckd_loss`.

    Example:
        >>> import torch
        >>> from semckd_kernels.functional import semckd_loss, semckd_loss_from_energy
        >>> s, t = [[torch.randn(8, 5, 2, 2)] * 3], [[torch.randn(8, 5, 2, 2)] * 3]
        >>> energy = torch.randn(8, 1, 3)
        >>> fused = semckd_loss_from_energy(s, t, energy)
        >>> torch.testing.assert_close(fused, semckd_loss(s, t, energy.softmax(-1)))

    Source: Chen et al., AAAI 2021, "Attention Allocation".
    """
    pairs = check_pairs(s_value, f_target)
    energy = check_weight("energy", energy, pairs)
    return _pair_loss(pairs, energy, True, backend, return_pair_mse, inplace_backward)


class _PairMse(torch.autograd.Function):
    """The eager path around ``ops.pair_mse``."""

    @staticmethod
    def forward(ctx: Any, namespace: Any, *maps: Tensor) -> Tensor:
        count = len(maps) // 2
        ctx.namespace = namespace
        ctx.save_for_backward(*maps)
        mse: Tensor = _run(namespace.pair_mse, maps[:count], maps[count:])
        return mse

    @staticmethod
    def backward(ctx: Any, d_mse: Tensor) -> tuple[Any, ...]:
        maps = ctx.saved_tensors
        count = len(maps) // 2
        flags = ctx.needs_input_grad[1:]
        if is_batch_of_gradients(d_mse):
            return None, *gradients.of_many_pair_mse(d_mse, maps, flags)
        needs = any(flags[:count]), any(flags[count:])
        return None, *gradients.of_pair_mse(_run, ctx.namespace, maps, d_mse, needs)


def pair_mse(s_value: NestedMaps, f_target: NestedMaps, *, backend: str | None = None) -> Tensor:
    r"""Mean squared error of every sample of every pair, in one kernel, differentiable.

    .. math:: D_{bij} = \frac{1}{N_{ij}} \lVert s_{ij}[b] - t_{ij}[b] \rVert^2

    Args:
        s_value, f_target, backend: as :func:`semckd_loss`.

    Returns:
        ``[B, S, T]``, fp32 (fp64 as soon as one map is fp64).

    Raises:
        As :func:`semckd_loss`.

    Example:
        >>> import torch
        >>> from semckd_kernels.functional import pair_mse
        >>> pair_mse([[torch.zeros(4, 3, 2, 2)]], [[torch.full((4, 3, 2, 2), 2.0)]])[0, 0, 0].item()
        4.0
    """
    pairs = check_pairs(s_value, f_target)
    name = _serving(backend, pairs)
    if name == "reference":
        mse = reference.pair_mse(pairs.s, pairs.t)
    elif torch.compiler.is_compiling():
        mse = operators(name).pair_mse(pairs.s, pairs.t)
    else:
        mse = _PairMse.apply(operators(name), *pairs.s, *pairs.t)
    return mse.view(pairs.batch, pairs.s_layers, pairs.t_layers)
