"""Which files of a folder a run has written: only those are ever removed, and only where the folder is a run's."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import checkpoint, lock
from .checkpoint import CheckpointError

FILES = ("config.json", "summary.json", "metrics.csv", "attention.csv", "steps.csv", "report.html", "tracker.json")
CHECKPOINTS = ("last.pt", "best.pt")
# in folders of their own, which may hold other files as well
PATTERNS = {
    "tensorboard": ("events.out.tfevents.*",),
    "export": ("model.safetensors", "model.pt2", "model.onnx", "README.md"),
    # runs of single pairs, a folder each, are runs of their own and stay
    "analysis": tuple(
        f"{name}.{kind}"
        for name in ("attention", "attention_epochs", "attention_classes", "mismatch", "single_pairs", "gradcam")
        for kind in ("png", "svg", "pdf", "csv", "json")
    ),
}
# shown of what is in the way
_SHOWN = 3


def is_run(folder: Path) -> bool:
    """Whether a run has written here: its lock file, its configuration or its checkpoint says so."""
    return (
        lock.holder(folder) is not None
        or _is_config(folder / "config.json")
        or any(_is_checkpoint(folder / "checkpoints" / name) for name in CHECKPOINTS)
    )


def is_empty(folder: Path) -> bool:
    """Whether nothing is there, or nothing but the lock file of a run that has not begun.

    Raises:
        OSError: it is a file, or cannot be read.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    return all(path.name == lock.NAME for path in folder.iterdir())


def strangers(folder: Path) -> str:
    """The first names in a folder, as half a sentence."""
    names = sorted(path.name for path in folder.iterdir() if path.name != lock.NAME)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def written(folder: Path) -> list[Path]:
    """Files of a run's folder that the run, its report and its analyses have written."""
    named = [folder / name for name in FILES] + [folder / "checkpoints" / name for name in CHECKPOINTS]
    # what a crash has left of one that was being written
    named += [checkpoint.aside(path) for path in named]
    found = [*named, *(path for name, patterns in PATTERNS.items() for path in _glob(folder / name, patterns))]
    return [path for path in found if path.is_file() or path.is_symlink()]


def remove(folder: Path) -> None:
    """Removes :func:`written`, the configuration last, and folders of a run that are empty then.

    Raises:
        OSError: something cannot be removed.
    """
    # without a configuration nobody would know whose the rest is
    for path in sorted(written(folder), key=lambda path: path.name == "config.json"):
        path.unlink()
    for name in ("checkpoints", *PATTERNS):
        # something else lies there, or it is a link
        with contextlib.suppress(OSError):
            (folder / name).rmdir()


def check_writable(folder: Path) -> None:
    """Whether files can be written to a folder that need not exist; leaves nothing behind.

    Raises:
        OSError: they cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()


def _glob(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from folder.glob(pattern)


def _is_config(path: Path) -> bool:
    """Whether it has the parts of a run's configuration, of this version or another."""
    try:
        values: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"format", "student", "method", "recipe", "hardware"} <= set(values)


def _is_checkpoint(path: Path) -> bool:
    try:
        return isinstance(checkpoint.load(path).get("config"), dict)
    except CheckpointError:
        return False
