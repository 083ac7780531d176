"""Pickles of arrays and lists from files that nobody vouches for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line

# newer versions of numpy have renamed the module
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
# types of numbers: an array's bytes are never read as anything else, such as pointers to objects
_NUMBERS = {"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"}


class _Type:
    """In place of ``numpy.dtype``, which takes layouts of memory from its state."""

    def __init__(self, name: object, *_: object) -> None:
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of type {name!r}, which is no number")
        self.dtype = np.dtype(str(name))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *layout = state[:5]
        if any(part is not None for part in layout):
            raise pickle.UnpicklingError("it has an array whose type has parts")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array whose type is a :class:`_Type`."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, fortran, content = state
        if isinstance(content, str):
            # as Python 2 spells bytes
            content = content.encode("latin1")
        if type(kind) is not _Type or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has an array that is not of numbers")
        super().__setstate__((version, shape, kind.dtype, fortran, content))  # type: ignore[misc]


def _reconstruct(*_: object) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _encode(text: str, _: str = "latin1") -> bytes:
    """How pickles of old protocols spell bytes."""
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows the few names that arrays are made with, so that a pickle cannot call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECONSTRUCT:
            return _reconstruct
        known = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): _encode}
        if (found := known.get((module, name))) is not None:
            return found
        raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which data does not need")


def load(path: Path) -> Any:
    """The numbers, texts, lists, dicts and numpy arrays of a pickle; those of Python 2 as well, with texts as latin1.

    Raises:
        ValueError: it is no pickle, asks for anything else to be made or called, or has arrays of anything but numbers;
            nothing has been called then.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _Unpickler(file, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:
            # a damaged pickle raises nearly anything
            raise ValueError(f"'{path}' cannot be read as a pickle of arrays: {first_line(error)}") from error
