"""Pickles of foreign checkpoints, read without importing or calling anything that they name.

A training script keeps more than weights in its files: its arguments (``argparse.Namespace``), a learning rate that
numpy computed, paths, dates, classes of its own. None of it is wanted here, and any of it names code. So every name in
a pickle stands for one of three things:

==============================  ========================================================================================
tensors and parameters          rebuilt over the storages that torch has read
``OrderedDict``, ``Size``       themselves: types written in C, which a pickle cannot change
everything else                 an empty :class:`Unknown` that remembers the name: nothing is imported, looked up or run
==============================  ========================================================================================

That holds for numpy as well: its scalars and types take their memory layout from the pickle, down to raw pointers.

``torch.load(..., pickle_module=...)`` takes this module in place of ``pickle``: it asks for ``Unpickler`` and ``load``.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor


class _Fixed(type):
    """A class that a pickle cannot change: its instruction BUILD sets attributes of whatever is before it."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets '{name}' of a class")


class Unknown(dict[Any, Any], metaclass=_Fixed):
    """Stands for an object of another library; what it is made with is dropped, items of a mapping are kept."""

    source = "an unknown object"
    # torch compares the source code of whole networks in old files, and would write the difference to a file
    dump_patches = False

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *args: object, **options: object) -> Unknown:
        """What a call gives is unknown as well."""
        return type(self)()

    # members of sets, keys of dicts
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def add(self, item: object) -> None:
        """An item of a set is dropped."""

    append = extend = add

    @property
    def is_network(self) -> bool:
        """Whether it was a ``torch.nn.Module``."""
        return isinstance(self.state, dict) and {"_parameters", "_modules"} <= self.state.keys()


class _RebuildTensor:
    # without a dict, so that a pickle cannot change it
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
        # torch checks that all of it lies within the storage
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: object) -> Any:
        return data


class _RebuildSubclass:
    __slots__ = ()

    def __call__(self, rebuild: Any, kind: object, arguments: Any, *_: object) -> Any:
        return rebuild(*arguments)


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
    ("torch._tensor", "_rebuild_from_type_v2"): _RebuildSubclass(),
}


class Unpickler(pickle.Unpickler):
    """``pickle.Unpickler`` with the names above."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        return known if known is not None else _Fixed("Unknown", (Unknown,), {"source": f"{module}.{name}"})


def load(file: BinaryIO, **options: Any) -> Any:
    """As ``pickle.load``."""
    return Unpickler(file, **options).load()
