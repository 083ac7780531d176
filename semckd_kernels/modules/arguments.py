"""Checks of constructor arguments: what can be taken for a number or a list of channels is, the rest is refused."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from numbers import Real
from typing import Any, SupportsIndex, TypeAlias

# what a constructor accepts as channels of the maps: lists, tuples, arrays, iterators
Channels: TypeAlias = Iterable[SupportsIndex]

# more layers than any network has; an endless iterator ends here
MOST_LAYERS = 1024


def is_whole(value: object) -> bool:
    """Whether ``value`` is an integer of any kind (Python's, numpy's, a tensor of one element), or equal to one."""
    if isinstance(value, bool) or not (hasattr(value, "__index__") or isinstance(value, Real)):
        return False
    try:
        return isinstance(value, Real) or operator.index(value) is not None  # type: ignore[arg-type]
    # arrays and tensors have the method and refuse where they hold several numbers or no integer
    except (TypeError, ValueError):
        return False


def whole_number(name: str, value: Any) -> int:
    """``value`` as an int of at least 1; ``32.0``, as ``64 / 2`` gives it, is one.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below 1.
    """
    if not is_whole(value) or (not hasattr(value, "__index__") and not float(value).is_integer()):
        raise TypeError(f"{name} must be a whole number, got {_shown(value)}")
    number = operator.index(value) if hasattr(value, "__index__") else int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def channel_list(name: str, value: Any, length: int | None = None) -> list[int]:
    """Channels of a network's maps as a list, from any ordered collection or iterator.

    Args:
        length: the number of layers, where it is given elsewhere.

    Raises:
        TypeError: it is no ordered collection, or holds something else than whole numbers.
        ValueError: it is empty or of another length, or a number is below 1.
    """
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable) or _is_scalar(value):
        raise TypeError(f"{name} must be a list of channels, one number a layer, got {_shown(value)}")
    channels = list(islice(value, MOST_LAYERS + 1))
    if len(channels) > MOST_LAYERS:
        raise ValueError(f"{name} must hold at most {MOST_LAYERS} numbers of channels, got more")
    if not channels or (length is not None and len(channels) != length):
        count = f"{length} " if length is not None else ""
        raise ValueError(f"{name} must be {count}positive numbers of channels, got {channels}")
    try:
        return [whole_number(f"{name}[{n}]", x) for n, x in enumerate(channels)]
    except ValueError:
        shown = [int(x) for x in channels]
        raise ValueError(f"{name} must be {len(channels)} positive numbers of channels, got {shown}") from None


def positive_number(name: str, value: Any) -> float:
    """``value`` as a float above 0, infinity included.

    Raises:
        TypeError: it is no real number.
        ValueError: it is not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        # tensors and arrays of one number
        value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {_shown(value)}")
    number = float(value)
    if not number > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def flag(name: str, value: Any) -> bool:
    """``value``, which must be True or False; a string such as ``"False"`` would count as true."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")
    return bool(value)


def criterion_options(positional: Sequence[Any], factor: Any, soft: Any, backend: Any) -> tuple[Any, Any, Any]:
    """``factor, soft, backend`` of a call whose options came by position, by name, or both.

    Ours are in the order of the authors' first code base, ``factor`` first; their later one has ``soft`` there. So
    numbers by position are told apart by their types, as 4 and 1.0, and refused where that does not tell.

    Raises:
        TypeError: it is not clear, or given twice, what is meant.
    """
    given = list(positional)
    if len(given) == 3 and backend is None:
        backend = given.pop()
    if len(given) == 2 and factor is None and soft is None and _is_integer(given[0]) != _is_integer(given[1]):
        factor, soft = given if _is_integer(given[0]) else reversed(given)
        given = []
    elif len(given) == 1 and soft is None and (factor is not None or not _is_integer(given[0])):
        soft = given.pop()
    elif len(given) == 1 and factor is None and soft is not None:
        factor = given.pop()
    if given:
        raise TypeError(
            f"options behind t_n must be given by name, as factor=4, soft=1.0, backend=None, got "
            f"{', '.join(map(repr, positional))}: by position it is not clear which is which"
        )
    return 4 if factor is None else factor, 1.0 if soft is None else soft, backend


def attention_arguments(positional: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the attention module by name, from a call in the manner of either of the authors' code bases.

    Returns:
        ``batch_size, s_n, t_n, factor, soft`` of both; the first manner's ``s_len, t_len`` as well.

    Raises:
        TypeError: it is a call in neither manner.
    """

    def official(s_len: Any, t_len: Any, input_channel: Any, s_n: Any, s_t: Any, factor: Any = 4) -> dict[str, Any]:
        lengths = {"s_len": s_len, "t_len": t_len}
        return {**lengths, "batch_size": input_channel, "s_n": s_n, "t_n": s_t, "factor": factor, "soft": 1.0}

    def toolbox(batch_size: Any, s_n: Any, t_n: Any, soft: Any = 1.0, factor: Any = 4) -> dict[str, Any]:
        return {"batch_size": batch_size, "s_n": s_n, "t_n": t_n, "factor": factor, "soft": soft}

    if "feat_dim" in named and "batch_size" not in named:
        named = {"batch_size": named["feat_dim"], **{k: v for k, v in named.items() if k != "feat_dim"}}
    second = positional[1] if len(positional) > 1 else None
    is_toolbox = {"batch_size", "t_n", "soft"} & named.keys() or (second is not None and not is_whole(second))
    call = toolbox if is_toolbox else official
    try:
        inspect.signature(call).bind(*positional, **named)
    except TypeError as error:
        raise TypeError(
            f"SelfA must be called as SelfA(s_len, t_len, input_channel, s_n, s_t, factor=4) or as SelfA(batch_size, "
            f"s_n, t_n, soft=1.0, factor=4), got {error}"
        ) from None
    return call(*positional, **named)


def _is_integer(value: Any) -> bool:
    return is_whole(value) and hasattr(value, "__index__")


def _is_scalar(value: Any) -> bool:
    # numpy's and torch's scalars claim to be iterable
    return getattr(value, "shape", None) == ()


def _shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} ({type(value).__name__})"
