"""Records of tensors as operators take and give them: their fields one after another, in one list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

Record = TypeVar("Record", bound=NamedTuple)


def flatten(records: Iterable[Iterable[Tensor]]) -> list[Tensor]:
    """The fields of all records."""
    return [x for record in records for x in record]


def split(kind: type[Record], flat: Sequence[Tensor]) -> list[Record]:
    """The inverse of :func:`flatten`, for records of one kind."""
    size = len(kind._fields)
    return [kind._make(flat[n : n + size]) for n in range(0, len(flat), size)]
