"""Checkpoints that are old or new, never half: written aside, flushed to the disk, renamed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from .errors import first_line

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read, with the reason in one sentence."""


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one is whole, and nothing is left beside it.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    # the new name is on the disk once its folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, values: dict[str, Any]) -> None:
    """Writes a checkpoint.

    Raises:
        CheckpointError: it cannot be written; an earlier one at this path is whole.
    """
    # through memory, since torch's own writer hides the reason of a failure
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **values}, buffer)
    try:
        write_file(path, buffer.getbuffer())
    except OSError as error:
        earlier = "the earlier one there is whole" if path.exists() else "there is no earlier one"
        raise CheckpointError(f"cannot write checkpoint '{path}': {error.strerror or error}; {earlier}") from error


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; only tensors and plain values are accepted.

    Raises:
        CheckpointError: it is missing, damaged, or not one of ours.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint '{path}': {error.strerror or error}") from error
    # a file that is no checkpoint can fail in many ways
    except Exception as error:
        raise CheckpointError(f"checkpoint '{path}' is damaged: {first_line(error)}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is not a checkpoint of this program in format {FORMAT}")
    return values


def rng_state() -> dict[str, Any]:
    """The random generators of this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
