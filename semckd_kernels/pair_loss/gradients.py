"""The gradients of the pair loss, once: what the registered operators and the eager path both call.

``call`` runs an operator: plainly where a formula is registered, below autograd in eager code. Gradients that are not
needed are None, one for each map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Gradients = Sequence[Tensor | None]
# whether the gradients of the student's and of the teacher's maps are needed
Needs = tuple[bool, bool]


class Saved(NamedTuple):
    """What a forward pass leaves for its backward pass, in the order of the operators."""

    s: Sequence[Tensor]
    t: Sequence[Tensor]
    weight: Tensor
    pair_mse: Tensor
    softmax: bool


def of_pair_loss(
    call: Callable[..., Any], operators: Any, saved: Saved, d_loss: Tensor, needs: Needs
) -> tuple[Gradients, Gradients, Tensor]:
    """``d_s``, ``d_t`` and ``d_weight`` from the upstream gradient of the loss."""
    d_s, d_t, d_weight = call(operators.pair_loss_backward, d_loss, *saved, *needs)
    return _or_none(d_s, saved.s), _or_none(d_t, saved.t), d_weight


def over_projections(
    call: Callable[..., Any], operators: Any, saved: Saved, d_loss: Tensor, need_t: bool
) -> tuple[Gradients, Gradients, Tensor]:
    """As :func:`of_pair_loss`, with ``d_s`` written over ``s``."""
    d_t, d_weight = call(operators.pair_loss_backward_, d_loss, *saved, need_t)
    return [x.detach() for x in saved.s], _or_none(d_t, saved.t), d_weight


def of_pair_mse(
    call: Callable[..., Any], operators: Any, maps: Sequence[Tensor], d_pair_mse: Tensor, needs: Needs
) -> list[Tensor | None]:
    """``d_s`` and ``d_t``, one after the other, from the upstream gradient ``[B, Q]`` of the pair errors."""
    count = len(maps) // 2
    s, t = maps[:count], maps[count:]
    d_s, d_t = call(operators.pair_mse_backward, d_pair_mse, s, t, *needs)
    return [*_or_none(d_s, s), *_or_none(d_t, t)]


def of_many_pair_mse(d_pair_mse: Tensor, maps: Sequence[Tensor], flags: Sequence[bool]) -> list[Tensor | None]:
    """:func:`of_pair_mse` for a batch of upstream gradients (is_grads_batched), which no kernel takes."""
    count = len(maps) // 2
    gradients: list[Tensor | None] = []
    for n, (x, needed) in enumerate(zip(maps, flags, strict=True)):
        if not needed:
            gradients.append(None)
            continue
        other, q = maps[(n + count) % (2 * count)], n % count
        factor = d_pair_mse[:, q].reshape(-1, *[1] * (x.dim() - 1)) * (2 / x.shape[1:].numel())
        gradients.append((factor * (x.to(d_pair_mse.dtype) - other.to(d_pair_mse.dtype))).to(x.dtype))
    return gradients


def _or_none(gradients: Sequence[Tensor], maps: Sequence[Tensor]) -> Gradients:
    """Operators return an empty list where nothing is needed."""
    return gradients or [None] * len(maps)
