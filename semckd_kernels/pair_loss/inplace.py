"""Guards of ``inplace_backward``: misuse raises, it never leaves a gradient where a map is expected.

The backward may write a projection's gradient over the projection because nothing needs the projection after its
squared error is known: convolutions save their inputs, not their outputs. Whoever does need it is found by autograd
itself, since the overwritten tensors' version counters are advanced. What autograd cannot see is checked here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layout import sample_order, samples_overlap
from .checks import Pairs


def check_overwritable(pairs: Pairs) -> None:
    """Raises ``ValueError`` unless every student projection may be overwritten by its gradient."""
    for q, x in enumerate(pairs.s):
        if not x.is_leaf and _has_dense_samples(x):
            continue
        where = f"s_value[{q // pairs.t_layers}][{q % pairs.t_layers}]"
        if x.is_leaf:
            kind = "a leaf of the graph" if x.requires_grad else "without gradient"
            raise ValueError(f"inplace_backward=True would overwrite {where}, which is {kind}")
        raise ValueError(f"inplace_backward=True needs dense projections, got {where} with strides {x.stride()}")
    _check_disjoint(pairs)


def overwrite_once(ctx: Any) -> None:
    """Raises ``RuntimeError`` where a backward with ``inplace_backward=True`` may not run."""
    if ctx.consumed:
        raise RuntimeError(
            "inplace_backward=True: a first backward has written gradients over the student projections, "
            "so there is no second one; use inplace_backward=False with retain_graph=True"
        )
    if torch.is_grad_enabled():
        raise RuntimeError("inplace_backward=True excludes create_graph=True; use backend='reference' for that")
    ctx.consumed = True


def _has_dense_samples(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    return sample_order(x) is not None and not samples_overlap(x)


def _memory(x: Tensor) -> tuple[int, int]:
    """First byte and the byte behind the last one."""
    begin = x.data_ptr()
    if x.is_contiguous():
        return begin, begin + x.nbytes
    extent = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return begin, begin + extent * x.element_size()


def _check_disjoint(pairs: Pairs) -> None:
    if pairs.batch == 0:
        return
    spans = sorted([(*_memory(x), True) for x in pairs.s] + [(*_memory(x), False) for x in pairs.t])
    # the furthest end seen so far, of projections and of all maps: teacher maps may share memory with each other
    end_s = end_all = 0
    for begin, end, is_projection in spans:
        if begin < (end_all if is_projection else end_s):
            raise ValueError("inplace_backward=True needs student projections that share no memory with another map")
        end_all = max(end_all, end)
        if is_projection:
            end_s = max(end_s, end)
