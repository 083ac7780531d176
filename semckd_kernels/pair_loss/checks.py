"""Argument checks of the public entry points: everything is checked before anything is computed.

Each failure raises ``TypeError`` or ``ValueError`` that names the argument, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..dtypes import FLOAT_NAMES, FLOAT_TYPES

NestedMaps = Sequence[Sequence[Tensor]]

PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_DENSE = {torch.strided}


class Pairs(NamedTuple):
    """The maps of S x T pairs, checked and in row-major ``(i, j)`` order."""

    s: list[Tensor]
    t: list[Tensor]
    batch: int
    s_layers: int
    t_layers: int
    # what sums, weights and results are kept in: fp32, or fp64 as soon as one map is fp64
    acc_dtype: torch.dtype
    device: torch.device


def check_pairs(s_value: NestedMaps, f_target: NestedMaps) -> Pairs:
    """Checks and flattens S lists of T student projections and teacher maps.

    Raises:
        TypeError: an argument is not lists of floating-point tensors.
        ValueError: numbers of layers, shapes, batch sizes or devices do not fit together, or a pair has no elements.
    """
    # this runs every step: good input is recognised in a few cheap passes, bad input is explained elsewhere
    try:
        s_layers, t_layers = len(s_value), len(s_value[0])
        s, t = [*chain.from_iterable(s_value)], [*chain.from_iterable(f_target)]
        shapes = [x.shape for x in s]
        types = {x.dtype for x in s} | {x.dtype for x in t}
        devices = {x.device for x in s} | {x.device for x in t}
        batch = shapes[0][0]
        good = (
            {*map(len, s_value), *map(len, f_target)} == {t_layers}
            and len(f_target) == s_layers
            and shapes == [x.shape for x in t]
            and types <= FLOAT_TYPES
            and len(devices) == 1
            and {x.layout for x in s} | {x.layout for x in t} == _DENSE
            and min([len(shape) for shape in shapes]) > 1
            and {shape[0] for shape in shapes} == {batch}
            and not any(0 in shape[1:] for shape in shapes if 0 in shape)
            and ({*map(type, s)} | {*map(type, t)} <= PLAIN_TENSORS or all(is_ordinary(x) for x in chain(s, t)))
        )
    # nested tensors have no shape
    except (AttributeError, LookupError, TypeError, RuntimeError):
        good = False
    if not good or not isinstance(s[0], Tensor):
        _explain(s_value, f_target)
    acc_dtype = torch.float64 if torch.float64 in types else torch.float32
    if acc_dtype == torch.float64:
        s, t = [x.double() for x in s], [x.double() for x in t]
    return Pairs(s, t, batch, s_layers, t_layers, acc_dtype, s[0].device)


def check_weight(name: str, weight: Tensor, pairs: Pairs) -> Tensor:
    """Checks a weight or energy ``[B, S, T]``; returns it in the type that the kernels accumulate in."""
    if not is_ordinary(weight):
        explain_kind(name, weight)
    expected = (pairs.batch, pairs.s_layers, pairs.t_layers)
    if weight.shape != expected:
        raise ValueError(f"{name} must be [B, S, T] = {list(expected)}, got {list(weight.shape)}")
    if weight.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {_name(weight.dtype)}")
    if weight.device != pairs.device:
        raise ValueError(f"{name} must be on the device of the maps, {pairs.device}, got {weight.device}")
    return weight if weight.dtype == pairs.acc_dtype else weight.to(pairs.acc_dtype)


def is_ordinary(x: object) -> bool:
    """Whether ``x`` is a tensor that holds its own elements, all of them: not sparse, nested or sharded."""
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_nested:
        return False
    return type(x) in PLAIN_TENSORS or not is_wrapper(x)


def is_wrapper(x: Tensor) -> bool:
    """Whether ``x`` is a tensor made of other tensors, as a DTensor of its shards; what tracers use is none."""
    return is_traceable_wrapper_subclass(x) and not type(x).__module__.startswith("torch._subclasses")


def explain_kind(name: str, x: object) -> NoReturn:
    """Raises for what :func:`is_ordinary` refuses."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pad it with x.to_padded_tensor(0.0)")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {x.layout}: use x.to_dense()")
    hint = ": use x.full_tensor()" if hasattr(x, "full_tensor") else ""
    raise TypeError(f"{name} must be a whole, plain tensor, got {type(x).__name__}{hint}")


def _rows(value: object, name: str) -> list[Sequence[Any]]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be S lists of T tensors, got {type(value).__name__}")
    for i, row in enumerate(value):
        if not isinstance(row, (list, tuple)):
            raise TypeError(f"{name}[{i}] must be a list of T tensors, got {type(row).__name__}")
    return list(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _explain(s_value: object, f_target: object) -> NoReturn:
    """Raises for what check_pairs found fault with."""
    s_rows, t_rows = _rows(s_value, "s_value"), _rows(f_target, "f_target")
    if not s_rows:
        raise ValueError("s_value must hold at least one student layer, got an empty list")
    if len(t_rows) != len(s_rows):
        raise ValueError(f"f_target must hold a list for each of the {len(s_rows)} student layers, got {len(t_rows)}")
    t_layers = len(s_rows[0])
    if t_layers == 0:
        raise ValueError("s_value[0] must hold at least one teacher layer's map, got an empty list")
    for name, rows in (("s_value", s_rows), ("f_target", t_rows)):
        for i, row in enumerate(rows):
            if len(row) != t_layers:
                raise ValueError(f"{name}[{i}] must hold {t_layers} maps as s_value[0] does, got {len(row)}")
    s, t = [x for row in s_rows for x in row], [x for row in t_rows for x in row]
    for q, (s_q, t_q) in enumerate(zip(s, t, strict=True)):
        at = f"[{q // t_layers}][{q % t_layers}]"
        _explain_map(f"s_value{at}", s_q)
        _explain_map(f"f_target{at}", t_q)
        if s_q.shape != t_q.shape:
            expected = f"the shape of s_value{at}, {list(s_q.shape)}"
            raise ValueError(f"f_target{at} must have {expected}, got {list(t_q.shape)}")
        if s_q.shape[0] != s[0].shape[0]:
            expected = f"the batch size of s_value[0][0], {s[0].shape[0]}"
            raise ValueError(f"s_value{at} must have {expected}, got {s_q.shape[0]}")
        for name, x in ((f"s_value{at}", s_q), (f"f_target{at}", t_q)):
            if x.device != s[0].device:
                raise ValueError(f"{name} must be on the device of s_value[0][0], {s[0].device}, got {x.device}")
    raise AssertionError("check_pairs refused pairs that have no fault")


def _explain_map(name: str, x: Any) -> None:
    if not is_ordinary(x):
        explain_kind(name, x)
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {_name(x.dtype)}")
    if x.dim() < 2:
        raise ValueError(f"{name} must be [B, C, h, w], got {list(x.shape)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} must have at least one element a sample, got {list(x.shape)}")
