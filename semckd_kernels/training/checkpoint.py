"""Checkpoints that are old or new, never half: written aside, flushed to the disk, renamed; read if checksums hold."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from . import archive
from .archive import DamagedArchive
from .errors import first_line

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read, with the reason in one sentence."""


def aside(path: Path) -> Path:
    """Where a file is while it is written."""
    return path.with_name(f".{path.name}.tmp")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one is whole, and nothing is left beside it.
    """
    new = aside(path)
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    # the new name is on the disk once its folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, values: dict[str, Any], *others: Path) -> None:
    """Writes a checkpoint to each path, one after the other.

    Raises:
        CheckpointError: it cannot be written; an earlier one at this path is whole.
    """
    # through memory, since torch's own writer hides the reason of a failure
    buffer = io.BytesIO()
    checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save({"format": FORMAT, **values}, buffer)
    finally:
        torch.serialization.set_crc32_options(checksums)
    for target in (path, *others):
        try:
            write_file(target, buffer.getbuffer())
        except OSError as error:
            earlier = "the earlier one there is whole" if target.exists() else "there is no earlier one"
            raise CheckpointError(
                f"cannot write checkpoint '{target}': {error.strerror or error}; {earlier}"
            ) from error


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; only tensors and plain values are accepted.

    Raises:
        CheckpointError: it is missing, damaged, or not one of ours.
    """
    try:
        with open(path, "rb") as file:
            if not archive.verify(file):
                raise DamagedArchive("it is no archive with checksums, as torch.save writes them")
            values = torch.load(file, map_location="cpu", weights_only=True)
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
