"""Finds runs, and takes those that compare: finished, on one data set, of one student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...training.config import TrainConfig
from ...training.run.folder import RunFolder
from ..runs import finished

# folders below a given one in which runs are looked for: runs/METHOD/seed-0
DEPTH = 3
# which accuracy of a run
EPOCHS = ("last", "best")


@dataclass(frozen=True)
class Run:
    """A finished run, read once."""

    folder: RunFolder
    config: TrainConfig
    summary: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.config.recipe.seed

    @property
    def test_images(self) -> int:
        return int(self.summary["counts"]["test_images"])

    def top1(self, epoch: str) -> float:
        """Test accuracy after the ``"last"`` epoch or the ``"best"`` one, from 0 to 1."""
        return float(self.summary["accuracy"][epoch]["top1"])

    @cached_property
    def step_ms(self) -> float | None:
        """The usual time of a step; None where nothing was timed."""
        parts = self.summary["step_ms"].values()
        if all(ms is not None for ms in parts):
            return float(sum(parts))
        # inside a CUDA graph there are no parts
        speed = self.summary["images_per_second"]
        images = self.config.recipe.batch_size * self.config.hardware.world_size
        return 1e3 * images / speed if speed else None

    @property
    def memory_mb(self) -> float | None:
        """Largest memory of its GPU; None on a CPU."""
        return self.summary.get("peak_memory_mb")


class LeftOut(NamedTuple):
    """A run that does not compare, and why, in a few words."""

    path: Path
    reason: str


class Teacher(NamedTuple):
    """The run that taught others: its network, and the accuracy of the checkpoint that teaches, from 0 to 1."""

    name: str
    path: Path
    top1: float


def find(paths: Sequence[Path]) -> list[Path]:
    """Folders of runs: those given, and those in folders that are given, down to :data:`DEPTH`; each once.

    Raises:
        ValueError: a path is no folder, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = list(_inside(path, DEPTH)) if path.is_dir() else []
        if not inside:
            what = "holds no run" if path.is_dir() else "is not a folder"
            raise ValueError(f"'{path}' {what}: give folders of runs, or a folder that holds some")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _inside(path: Path, depth: int) -> Iterator[Path]:
    # a run's folder may hold others, of an analysis, which are none of the user's
    if RunFolder(path).is_run:
        yield path
    elif depth:
        for inner in sorted(path.iterdir(), key=_natural):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _inside(inner, depth - 1)


def _natural(path: Path) -> tuple[str, int, str]:
    """seed-2 before seed-10."""
    name = path.name.rstrip("0123456789")
    digits = path.name[len(name) :]
    return name, int(digits or -1), path.name


def read(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs in folders, and the others."""
    runs, others = list[Run](), list[LeftOut]()
    for path in paths:
        folder = RunFolder(path)
        if not folder.is_finished:
            others.append(LeftOut(path, "not finished"))
            continue
        try:
            runs.append(Run(finished(path), folder.config, folder.summary))
        except ValueError as error:
            others.append(LeftOut(path, str(error)))
        except OSError as error:
            others.append(LeftOut(path, f"'{error.filename}': {error.strerror}"))
    return runs, others


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs of the data set and the student that most of them have, and the others.

    Runs that only taught the ones that are taken are neither.
    """
    if not runs:
        return [], []
    # the first of the most common
    common = Counter(tuple(_kind(run).values()) for run in runs).most_common(1)[0][0]
    kept = [run for run in runs if tuple(_kind(run).values()) == common]
    taught = {path.resolve() for run in kept if (path := teacher_path(run.config)) is not None}
    others = [
        LeftOut(run.folder.path, _apart(run, common))
        for run in runs
        if run not in kept and run.folder.path.resolve() not in taught
    ]
    return kept, others


def _kind(run: Run) -> dict[str, Any]:
    """What must be equal where accuracies are compared."""
    data = run.config.data
    return {
        "data set": data.name,
        "student": run.config.student.name,
        "image size": data.image_size or "the data set's own",
        "test images": run.test_images,
    }


def _apart(run: Run, common: Sequence[Any]) -> str:
    """``"data set cifar100, not digits"``."""
    pairs = zip(_kind(run).items(), common, strict=True)
    return next(f"{name} {own}, not {other}" for (name, own), other in pairs if own != other)


def teacher_path(config: TrainConfig) -> Path | None:
    """The folder of the run whose checkpoint teaches; None where it is a file of another kind."""
    if config.teacher is None or not config.teacher.weights:
        return None
    path = Path(config.teacher.weights)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return folder if RunFolder(folder).is_run else None


def teachers(runs: Sequence[Run]) -> list[Teacher]:
    """The runs that taught these and are still there, each once."""
    paths = {path.resolve(): path for run in runs if (path := teacher_path(run.config)) is not None}
    found, _ = read(list(paths.values()))
    return [Teacher(run.config.student.name, run.folder.path, run.top1("best")) for run in found]


def left_out_sentence(others: Sequence[LeftOut]) -> str:
    """Names all of them, with their reasons."""
    return "Left out: " + "; ".join(f"'{path}' ({reason})" for path, reason in others) + "."
