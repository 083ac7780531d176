"""The two checkpoints of a run that resumes: either is made again where the other one is it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from . import checkpoint
from .checkpoint import CheckpointError
from .folder import RunFolder


def mend(folder: RunFolder, config: TrainConfig, place: tuple[int, int], best: Mapping[str, Any]) -> str | None:
    """Sees to it that both are there, and that ``best.pt`` is what the last checkpoint counts on.

    Args:
        folder: of the run.
        config: of the run.
        place: epoch and step where it resumes, counted from 0.
        best: epoch, counted from 1, top1 and top5 of its best epoch; epoch 0 where there is none.

    Returns:
        Why the networks of the best epoch cannot be read, where they are lost.

    Raises:
        CheckpointError: a file cannot be written.
    """
    if not folder.last.exists():
        # the one that the run resumes from
        _copy(folder.best, folder.last)
    if best["epoch"] == 0:
        return None
    try:
        # a process that was killed between the two has left a later one
        values = checkpoint.load(folder.best)
        folder.check_same_run(folder.best, values, config)
        folder.check_is_best(folder.best, values)
        if values["best"]["epoch"] > best["epoch"] or values["best"] == best:
            return None
        problem = f"'{folder.best}' is of epoch {values['best']['epoch']}"
    except (CheckpointError, KeyError, TypeError) as error:
        problem = str(error)
    if place == (best["epoch"], 0):
        _copy(folder.last, folder.best)
        return None
    return f"the networks of the best epoch so far ({best['epoch']}, top-1 {best['top1']:.2%}) are lost: {problem}"


def _copy(source: Path, target: Path) -> None:
    try:
        checkpoint.write_file(target, source.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot write '{target}': {error.strerror or error}") from error
