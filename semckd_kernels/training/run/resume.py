"""What a run resumes from: its configuration, its checkpoint, and what a finished one lacks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .. import config
from ..config import TrainConfig
from ..errors import first_line
from . import checkpoint, ownership
from .checkpoint import CheckpointError
from .folder import RunFolder

# of the report
PACKAGES = ("jinja2", "matplotlib")


def stored_config(folder: RunFolder) -> TrainConfig | None:
    """The configuration of the run in a folder: ``config.json``, or a checkpoint's where that is missing or damaged.

    Returns:
        None where no run has begun.

    Raises:
        ValueError: a run has begun, and its configuration is nowhere.
    """
    try:
        return folder.config
    except FileNotFoundError:
        problem = f"'{folder.path / 'config.json'}' is missing"
    except ValueError as error:
        problem = str(error)
    for path in (folder.last, folder.best):
        try:
            return config.from_dict(checkpoint.load(path)["config"])
        except (CheckpointError, KeyError, ValueError, TypeError, AttributeError):
            continue
    if not folder.is_run or not ownership.is_run(folder.path):
        return None
    raise ValueError(f"{problem}, and no checkpoint holds the configuration: --overwrite starts over")


def load(folder: RunFolder, wanted: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint that a run resumes from: ``last.pt``, or ``best.pt`` where that is missing.

    Returns:
        None where the run has not come to its first checkpoint.

    Raises:
        CheckpointError: it is damaged, or of another run; or checkpoints are missing that there were.
    """
    path = folder.last if folder.last.exists() or not folder.best.exists() else folder.best
    if not path.exists():
        if folder.is_finished or _has_rows(folder):
            raise CheckpointError(
                f"'{folder.last}' is missing, and best.pt as well: the run cannot be resumed, --overwrite starts over"
            )
        return None
    try:
        values = checkpoint.load(path)
    except CheckpointError as error:
        way = f"; without last.pt --resume continues from '{folder.best}'" if folder.best.exists() else ""
        raise CheckpointError(f"{error}{way if path == folder.last else ''}") from error
    folder.check_same_run(path, values, wanted)
    missing = [name for name in ("optimizer", "scaler", "epoch", "step", "best", "ranks") if name not in values]
    if missing:
        raise CheckpointError(f"'{path}' is not a whole checkpoint: it has no '{missing[0]}'")
    for name in ("epoch", "step"):
        if not isinstance(values[name], int):
            raise CheckpointError(
                f"'{path}' is not a whole checkpoint: its '{name}' must be a whole number, got {values[name]!r}"
            )
    return values


def source(folder: RunFolder) -> str | None:
    """What to say where a run does not resume from the file it should."""
    if folder.last.exists() or not folder.is_run:
        return None
    if folder.best.exists():
        return f"'{folder.last}' is missing: resumes from '{folder.best}'"
    return f"the run in '{folder.path}' has no checkpoint yet: starts with its first epoch"


def lacking(folder: RunFolder, wanted: TrainConfig) -> str | None:
    """What a run lacks of being finished, in one sentence; None where everything is there and whole.

    The report is not looked at: see :func:`has_report`.
    """
    if not folder.is_finished:
        return f"the run in '{folder.path}' is not finished: it has no summary.json"
    try:
        folder.verify()
        best = folder.summary["accuracy"]["best"]
        if (epochs := wanted.recipe.epochs) != folder.config.recipe.epochs:
            return f"it has {folder.config.recipe.epochs} epochs, {epochs} are asked for"
        if len(folder.metrics()) != epochs:
            return f"'{folder.path / 'metrics.csv'}' has not {epochs} rows"
        folder.attention()
        for path, place in ((folder.last, epochs), (folder.best, best["epoch"])):
            values = checkpoint.load(path)
            folder.check_same_run(path, values, wanted)
            if values.get("epoch", place) != place:
                return f"'{path}' is of epoch {values['epoch']}, not {place}"
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
        return first_line(error)
    except OSError as error:
        return f"'{error.filename}': {error.strerror}"
    return None


def has_report(folder: RunFolder) -> bool:
    """Whether a whole report is there, or none can be made here."""
    if any(find_spec(name) is None for name in PACKAGES):
        return True
    try:
        return (folder.path / "report.html").read_bytes().rstrip().endswith(b"</html>")
    except OSError:
        return False


def _has_rows(folder: RunFolder) -> bool:
    try:
        return (folder.path / "metrics.csv").read_bytes().count(b"\n") > 1
    except OSError:
        return False
