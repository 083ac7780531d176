"""The folder of a run: what is in it, how it is written, and how a finished one is read.

=====================  ================================================================================================
``config.json``        the whole TrainConfig
``metrics.csv``        a row an epoch, see :data:`METRICS`; milliseconds are means a step, empty where a part cannot
                       be timed (inside a CUDA graph)
``attention.csv``      ``epoch, student_layer, teacher_layer, weight``: mean over the epoch's training images
``steps.csv``          ``epoch, step, lr, loss`` and terms of every step, where asked for
``checkpoints/``       ``last.pt`` (resumes bit for bit) and ``best.pt`` (networks of the best accuracy)
``summary.json``       at the end: accuracies, counts, seconds, environment, layers, split of a step
``tensorboard/``       where installed
``report.html``        at the end
=====================  ================================================================================================

Epochs and steps are counted from 1 in these files.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checkpoint, config, setup
from .config import TrainConfig
from .data import DataSet
from .methods import Criterion
from .models import FeatureNet

MILLISECONDS = ("data_ms", "teacher_ms", "student_ms", "criterion_ms", "optimizer_ms", "other_ms")
LOSSES = ("train_loss", "train_ce", "train_kd", "train_semckd")
ACCURACIES = ("train_top1", "test_top1", "test_top5", "test_loss")
METRICS = ("epoch", "lr", *LOSSES, *ACCURACIES, "images_per_second", "seconds", *MILLISECONDS)
ATTENTION = ("epoch", "student_layer", "teacher_layer", "weight")
# everything that a run writes, and that --overwrite removes
FILES = ("config.json", "summary.json", "metrics.csv", "attention.csv", "steps.csv", "report.html")
FOLDERS = ("checkpoints", "tensorboard", "analysis")


class Attention(NamedTuple):
    """The mean attention of every epoch; layers are module paths."""

    epochs: list[int]
    student_layers: list[str]
    teacher_layers: list[str]
    weight: Tensor  # [epochs, S, T], fp64


class LoadedRun(NamedTuple):
    """Networks of a run in eval mode, its criterion and its data."""

    student: FeatureNet
    teacher: FeatureNet | None
    criterion: Criterion
    data: DataSet
    config: TrainConfig


class RunFolder:
    """A run's folder by its path, which need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.best = (self.path / "checkpoints" / f"{name}.pt" for name in ("last", "best"))

    @property
    def is_run(self) -> bool:
        return (self.path / "config.json").exists()

    @property
    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    @cached_property
    def config(self) -> TrainConfig:
        """Raises OSError where there is none, ValueError where it is damaged."""
        return config.load(self.path / "config.json")

    @property
    def summary(self) -> dict[str, Any]:
        """Raises OSError where the run is not finished."""
        values: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return values

    def metrics(self) -> list[dict[str, float]]:
        """A row an epoch, in order; terms that the method lacks are nan."""
        rows = _read(self.path / "metrics.csv")
        return [{name: float(row.get(name) or "nan") for name in METRICS} for row in rows]

    def steps(self) -> list[dict[str, float]]:
        """A row a step, in order; empty where they were not kept."""
        path = self.path / "steps.csv"
        return [{name: float(value) for name, value in row.items()} for row in _read(path)] if path.exists() else []

    def attention(self) -> Attention | None:
        """None where the method has no attention."""
        path = self.path / "attention.csv"
        rows = _read(path) if path.exists() else []
        if not rows:
            return None
        epochs, student, teacher = (list(dict.fromkeys(row[name] for row in rows)) for name in ATTENTION[:3])
        weight = torch.tensor([float(row["weight"]) for row in rows], dtype=torch.float64)
        shape = (len(epochs), len(student), len(teacher))
        return Attention([int(epoch) for epoch in epochs], student, teacher, weight.reshape(shape))

    def load(self, device: str = "cpu", which: str = "best") -> LoadedRun:
        """The networks, with the parameters of a checkpoint.

        Args:
            device: where to.
            which: ``"best"`` by test accuracy, or ``"last"``.

        Raises:
            ValueError, OSError: the folder is not a run's, or its data or teacher are gone.
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        values = self._checkpoint(which)
        changes = {"hardware.device": device, "hardware.world_size": 1, "hardware.cuda_graph": False}
        # where the run computed is not where it is looked at
        changes["hardware.precision"] = "fp32"
        # looking at a run, which may be a stranger's, fetches nothing
        changes["data.download"] = False
        run = setup.prepare(
            config.replace(self.config, **changes, **{"student.weights": None, "student.pretrained": False}),
            training=False,
        )
        for module in (run.student, run.criterion):
            module.eval().requires_grad_(False)
        loaded = LoadedRun(run.student, run.teacher, run.criterion, run.data, self.config)
        self._fill(loaded, values)
        return loaded

    def reload(self, run: LoadedRun, which: str) -> None:
        """Gives a loaded run the parameters of another of its checkpoints; raises as :meth:`load` does."""
        self._fill(run, self._checkpoint(which))

    def _checkpoint(self, which: str) -> dict[str, Any]:
        if which not in ("best", "last"):
            raise ValueError(f"which must be 'best' or 'last', got '{which}'")
        if not self.is_run:
            raise ValueError(f"'{self.path}' is not the folder of a run: it has no config.json")
        return checkpoint.load(self.best if which == "best" else self.last)

    @staticmethod
    def _fill(run: LoadedRun, values: dict[str, Any]) -> None:
        run.student.net.load_state_dict(values["student"])
        run.criterion.load_state_dict(values["criterion"])

    def check(self, overwrite: bool, resume: bool) -> None:
        """Whether a run may start here; leaves nothing behind.

        Raises:
            ValueError: there is a run already.
            OSError: it cannot be written to.
        """
        if self.is_run and not (overwrite or resume):
            raise ValueError(f"'{self.path}' holds a run already: give --resume to go on or --overwrite to start anew")
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        finally:
            for path in missing:
                if path.is_dir():
                    path.rmdir()

    def create(self, run: TrainConfig) -> None:
        """Starts a run: nothing of an earlier one is left, and ``config.json`` is written."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.last.parent.mkdir(parents=True)
        self.write_json("config.json", run.to_dict())

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        content = json.dumps(values, indent=2, allow_nan=False) + "\n"
        checkpoint.write_file(self.path / name, content.encode())


class CsvFile:
    """Rows that are appended to a CSV file, and stay there when the process dies."""

    def __init__(self, path: Path, columns: Sequence[str], keep: int = 0) -> None:
        """Keeps the first rows of an earlier file, as many as the checkpoint that the run goes on from has seen.

        Raises:
            ValueError: there are fewer.
        """
        lines = path.read_text().splitlines(keepends=True)[1 : keep + 1] if keep and path.exists() else []
        if len(lines) < keep:
            raise ValueError(f"'{path}' has {len(lines)} rows, but the checkpoint was written after {keep}")
        checkpoint.write_file(path, "".join([",".join(columns) + "\n", *lines]).encode())
        # line by line into the kernel: a killed process loses none
        self._file = open(path, "a", newline="", buffering=1)  # noqa: SIM115 (open as long as the run)
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def append(self, row: dict[str, Any]) -> None:
        self._writer.writerow(row)

    def sync(self) -> None:
        """Onto the disk: a checkpoint must not be ahead of its rows."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
