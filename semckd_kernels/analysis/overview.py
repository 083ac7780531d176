"""The analyses that end the demo: each of them once, on its runs, small enough for a minute on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..training.config import replace
from ..training.run.folder import RunFolder
from . import attention, mismatch_runs, panels, single_pairs
from .gradcam import MISSING, captum_is_installed
from .runs import Result, link

# of the test set; enough to see that the networks look at strokes
IMAGES = (0, 5, 17, 42)
# of three steps each on a tenth of the digits: fewer are too short for BatchNorm's running statistics
SWEEP_EPOCHS = 10


def run(folders: list[RunFolder], quick: bool, device: str, say: Callable[[str], None]) -> Path:
    """Analyses the demo's runs, into the last one's folder; returns where the files are.

    Args:
        folders: the student alone, KD and SemCKD, in this order.
        quick: a sweep over two pairs instead of all, in one epoch each.
        device: where to compute.
        say: gets lines of text.

    Raises:
        ValueError, OSError, CheckpointError, TrainingError, Stopped: as the analyses.
    """
    out = folders[-1].path / "analysis"

    def finish(result: Result) -> None:
        result.write(out)
        say(f"\n{result.summary}")

    finish(attention.analyze(folders[-1], device=device))
    finish(mismatch_runs.analyze(folders, device=device))
    if captum_is_installed():
        finish(panels.analyze(folders, IMAGES, device=device))
    else:
        say(f"\n{MISSING}")
    epochs = 1 if quick else SWEEP_EPOCHS
    student, teacher = (len(folders[-1].summary["layers"][side]) for side in ("student", "teacher"))
    ends = [(0, 0), (student - 1, teacher - 1)] if quick else None
    say("")
    alone = _student_alone(folders[0], epochs, out / "single_pairs" / "student")
    sweep = single_pairs.plan([alone, folders[-1]], out / "single_pairs", pairs=ends, epochs=epochs, device=device)
    single_pairs.train(sweep, say)
    finish(single_pairs.result(sweep))
    link(folders[-1], out)
    return out


def _student_alone(folder: RunFolder, epochs: int, path: Path) -> RunFolder:
    """The student alone, trained for as long as the sweep's students; the demo's own where that is as short."""
    if folder.config.recipe.epochs == epochs:
        return folder
    short = RunFolder(path)
    single_pairs.train_run(replace(folder.config, **{"recipe.epochs": epochs}), short)
    return short
