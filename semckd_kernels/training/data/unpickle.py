"""Pickles of arrays and lists from files that nobody vouches for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line

# newer versions of numpy have renamed the module, and read the old name
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


def _encode(text: str, _: str = "latin1") -> bytes:
    """How pickles of old protocols spell bytes."""
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows the few names that arrays are made with, so that a pickle cannot call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECONSTRUCT:
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which data does not need")


def load(path: Path) -> Any:
    """The numbers, texts, lists, dicts and numpy arrays of a pickle; those of Python 2 as well, with texts as latin1.

    Raises:
        ValueError: it is no pickle, or asks for anything else to be made or called; nothing has been called then.
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
