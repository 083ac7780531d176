"""What a tree of modules was when it was looked at, to be compared with what it is now.

Looking at a hundred modules attribute by attribute costs a step of small maps some percent. Nothing tells of a change,
so each call compares; that runs in C, over all modules at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

_DICT = attrgetter("__dict__")


class Snapshot:
    """The classes, attributes, hooks, parameters, buffers and submodules of a module and of all below it.

    Tensors are compared by identity, whatever is in them or was done to them in place.

    Args:
        root: the module; not kept alive.
        tensors: all tensors that matter below it.
    """

    def __init__(self, root: nn.Module, tensors: Iterable[Tensor]) -> None:
        self._below = [module for module in root.modules() if module is not root]
        self._kinds = [*map(type, self._below)]
        dicts = self._dicts(root)
        self._attributes = _values(dicts)
        tables = [x for x in self._attributes if isinstance(x, dict)]
        self._empty = [table for table in tables if not table]
        self._filled = [table for table in tables if table]
        self._names = [*chain.from_iterable(self._filled)]
        self._contents = _values(self._filled)
        # lists compare by identity first, and then by value, which one element has
        self._is_certain = all(x.numel() > 1 for x in tensors)

    def holds(self, root: nn.Module) -> bool:
        """Whether all is as it was."""
        try:
            return (
                self._is_certain
                and not any(self._empty)
                and _values(self._filled) == self._contents
                and [*chain.from_iterable(self._filled)] == self._names
                and [*map(type, self._below)] == self._kinds
                and _values(self._dicts(root)) == self._attributes
            )
        # another tensor is not equal as a whole
        except (RuntimeError, TypeError, ValueError):
            return False

    def _dicts(self, root: nn.Module) -> list[dict[str, Any]]:
        return [root.__dict__, *map(_DICT, self._below)]


def _values(tables: Iterable[dict[str, Any]]) -> list[Any]:
    return [*chain.from_iterable(map(dict.values, tables))]
