"""Files of weights: whatever torch, safetensors and the scripts around them write, and no code of it is run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from .. import archive
from ..errors import first_line
from . import inert_pickle


def read(path: Path) -> Any:
    """The content of a file, on the CPU.

    Plain files are read by torch's ``weights_only`` reader. What that refuses, because objects of other libraries lie
    beside the weights, is read once more with an inert placeholder for each of these (``inert_pickle``). The old format
    of torch (before 1.6) and the strings of Python 2 are read as well.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no file of weights; the message says why.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} is not a file")
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except archive.DamagedArchive as error:
        raise ValueError(f"weights: {path} is damaged: {error}") from error
    except OSError:
        raise
    except EOFError as error:
        raise ValueError(f"weights: {path} is damaged: its end is missing") from error
    # a file that is no checkpoint can fail in many ways
    except Exception as error:
        raise ValueError(f"weights: {path} cannot be read as a checkpoint: {first_line(error)}") from error


def _torch(path: Path) -> Any:
    with archive.opened(path) as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        # anything else that it refuses (TorchScript, tar files) is no state dict with something beside it
        except (pickle.UnpicklingError, UnicodeDecodeError):
            file.seek(0)
        # not torch's own reader, but nothing is run: inert_pickle resolves no name. Texts of Python 2 may be bytes.
        options: dict[str, Any] = {"weights_only": False, "pickle_module": inert_pickle, "encoding": "latin1"}
        with warnings.catch_warnings():
            # that the source code of a whole network is not here
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", **options)


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("the package safetensors is not installed (pip install safetensors)") from error
    return load_file(path)
