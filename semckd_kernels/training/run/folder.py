"""The folder of a run: what is in it, how it is written, and how a finished one is read.

=====================  ================================================================================================
``config.json``        the whole TrainConfig
``metrics.csv``        a row an epoch, see :func:`.rows.metric_columns`; milliseconds are means a step, empty where a
                       part cannot be timed (inside a CUDA graph)
``attention.csv``      ``epoch, student_layer, teacher_layer, weight``: mean over the epoch's training images
``steps.csv``          ``epoch, step, lr, loss`` and terms of every step, where asked for
``checkpoints/``       ``last.pt`` (resumes bit for bit) and ``best.pt`` (networks of the best accuracy)
``summary.json``       at the end: accuracies, counts, seconds, environment, layers, split of a step, checksums of
                       the files above
``tensorboard/``       where installed
``tracker.json``       which run of Weights & Biases or MLflow this is; ``wandb/`` is the former's
``report.html``        at the end
``semckd.lock``        who writes here, or has written last, see ``lock``
=====================  ================================================================================================

Epochs and steps are counted from 1 in these files. The truth is in the checkpoints: they hold the configuration and
every row, and a resumed run makes the other files from them.
"""

from __future__ import annotations

import json
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import config
from .. import preparation as setup
from ..config import TrainConfig
from ..data import DataSet, Images
from ..distributed import Ranks
from ..methods import Criterion
from ..models import FeatureNet
from . import checkpoint, course, ownership, rows
from .checkpoint import CheckpointError
from .lock import FolderLock

SUMMARY = ("accuracy", "counts", "seconds", "images_per_second", "step_ms", "layers", "environment")
ATTENTION = ("epoch", "student_layer", "teacher_layer", "weight")
# whose checksums the summary holds
CHECKED = ("metrics.csv", "attention.csv", "steps.csv")


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
        if not str(path).strip():
            raise ValueError("a run's folder must have a name, got ''")
        self.path = Path(path)
        self.last, self.best = (self.path / "checkpoints" / name for name in ownership.CHECKPOINTS)
        self._lock = FolderLock(self.path)

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
        """Raises OSError where the run is not finished, ValueError where it is damaged."""
        path = self.path / "summary.json"
        try:
            values: Any = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{path}' is not JSON: {error}") from error
        missing = [name for name in SUMMARY if name not in values] if isinstance(values, dict) else SUMMARY
        if missing:
            raise ValueError(f"'{path}' is not the summary of a run: it has no {missing[0]}")
        sums = values.get("checksums")
        if sums is not None and (not isinstance(sums, dict) or sums.get("summary.json") != _checksum(values)):
            raise ValueError(f"'{path}' is not as the run has written it: its checksum differs")
        found: dict[str, Any] = values
        return found

    def metrics(self) -> list[dict[str, float]]:
        """A row an epoch, in order; terms that the method lacks are nan.

        Raises OSError where there is none, ValueError where it is damaged.
        """
        path = self.path / "metrics.csv"
        lines = rows.read(path)
        # the file says which terms its method has
        header = lines[0] if lines else {}
        names = rows.metric_columns(rows.terms_of(header), averaged=rows.RAW in header)
        found = [{name: rows.number(path, row, name) for name in names} for row in lines]
        if [row["epoch"] for row in found] != list(range(1, len(found) + 1)):
            raise ValueError(f"'{path}' is damaged: its epochs must be 1, 2, 3, ...")
        return found

    def steps(self) -> list[dict[str, float]]:
        """A row a step, in order; empty where they were not kept. Raises ValueError where it is damaged."""
        path = self.path / "steps.csv"
        found = rows.read(path) if path.exists() else []
        return [{name: rows.number(path, row, name) for name in row} for row in found]

    def attention(self) -> Attention | None:
        """None where the method has no attention. Raises ValueError where it is damaged."""
        path = self.path / "attention.csv"
        found = rows.read(path) if path.exists() else []
        if not found:
            return None
        places = [tuple(row.get(name, "") for name in ATTENTION[:3]) for row in found]
        epochs, student, teacher = (list(dict.fromkeys(place[n] for place in places)) for n in range(3))
        if places != [(epoch, i, j) for epoch in epochs for i in student for j in teacher]:
            raise ValueError(f"'{path}' is damaged: each epoch must have each pair of layers once")
        weight = torch.tensor([rows.number(path, row, "weight") for row in found], dtype=torch.float64)
        shape = (len(epochs), len(student), len(teacher))
        numbers = [int(rows.number(path, {"epoch": epoch}, "epoch")) for epoch in epochs]
        return Attention(numbers, student, teacher, weight.reshape(shape))

    def verify(self) -> None:
        """Whether what a finished run has written is still as it was, as far as its summary knows.

        Raises:
            OSError: a file cannot be read.
            ValueError: the folder is no finished run's, or a file is damaged, edited, or of another run.
        """
        if not self.is_run:
            raise ValueError(f"'{self.path}' is not the folder of a run: it has no config.json{self._way_to_config()}")
        if not self.is_finished:
            raise ValueError(
                f"the run in '{self.path}' is not finished: it has no summary.json, `semckd train --resume --out "
                f"{self.path}` finishes it"
            )
        sums = self.summary.get("checksums") or {}
        way = f"`semckd train --resume --out {self.path}` restores it from the checkpoint"
        # damaged it says so itself
        self.config  # noqa: B018
        if "config.json" in sums and sums["config.json"] != self._course():
            raise ValueError(f"'{self.path / 'config.json'}' is not the one of the finished run: {way}")
        for name in CHECKED:
            path = self.path / name
            if name in sums and (not path.exists() or sums[name] != zlib.crc32(path.read_bytes())):
                what = "is not as the run has written it" if path.exists() else "is missing"
                raise ValueError(f"'{path}' {what}: {way}")

    def load(self, device: str = "cpu", which: str = "best") -> LoadedRun:
        """The networks, with the parameters of a checkpoint.

        Args:
            device: where to.
            which: ``"best"`` by test accuracy, or ``"last"``.

        Raises:
            ValueError, OSError: the folder is not a run's, or its data or teacher are gone.
            CheckpointError: there is no such checkpoint, or it is damaged or of another run.
        """
        values = self.read_checkpoint(which)
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
        self._fill(run, self.read_checkpoint(which))

    def read_checkpoint(self, which: str) -> dict[str, Any]:
        """A checkpoint of this run; raises as :meth:`load` does."""
        if which not in ("best", "last"):
            raise ValueError(f"which must be 'best' or 'last', got '{which}'")
        if not self.is_run:
            raise ValueError(f"'{self.path}' is not the folder of a run: it has no config.json{self._way_to_config()}")
        path = self.best if which == "best" else self.last
        values = checkpoint.load(path)
        self.check_same_run(path, values, self.config)
        if which == "best":
            self.check_is_best(path, values)
        return values

    def _way_to_config(self) -> str:
        lost = ownership.is_run(self.path)
        return f", which `semckd train --resume --out {self.path}` restores from the checkpoint" if lost else ""

    @staticmethod
    def check_same_run(path: Path, values: dict[str, Any], wanted: TrainConfig) -> None:
        """Raises CheckpointError where a checkpoint is of a run of another configuration."""
        try:
            own = config.from_dict(values["config"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"'{path}' is not a checkpoint of a run: {fit(error)}") from error
        if names := course.differing(own, wanted):
            raise CheckpointError(
                f"'{path}' is of a run of another configuration than config.json ("
                f"{course.describe(own, wanted, names)}): give each its own back; without config.json --resume "
                "restores that of the checkpoint"
            )

    @staticmethod
    def check_is_best(path: Path, values: dict[str, Any]) -> None:
        """Raises CheckpointError where a checkpoint is not of its best epoch, such as a last one copied over it."""
        try:
            best = int(values["best"]["epoch"])
            # a version before this one kept no place there
            place = int(values.get("epoch", best)), int(values.get("step", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{path}' is not a whole checkpoint: {fit(error)}") from error
        if place != (best, 0):
            raise CheckpointError(f"'{path}' is of epoch {place[0]}, step {place[1]}, not of the best epoch {best}")

    def images(self) -> Images:
        """What the run's networks take; its data need not be there, once it is finished."""
        kept = self.summary.get("images") if self.is_finished else None
        if kept is not None:
            return Images(**{**kept, **{name: tuple(kept[name]) for name in ("image_size", "mean", "std")}})
        # of a run that is not finished, or of an earlier version
        run = config.replace(self.config, **{"data.download": False, "hardware.world_size": 1})
        return setup.build_data(run, torch.device("cpu"), Ranks()).images

    def student(self, images: Images, device: torch.device, values: dict[str, Any]) -> FeatureNet:
        """The student alone, in eval mode.

        Args:
            images: of :meth:`images`.
            device: where to.
            values: of :meth:`read_checkpoint`.

        Raises:
            ValueError: its network cannot be made.
            CheckpointError: the checkpoint does not fit it.
        """
        net = setup.build_network(self.config.student, self.config, images, device, weights=False)
        self._load(net.net, values, "student")
        return net.eval()

    def _fill(self, run: LoadedRun, values: dict[str, Any]) -> None:
        self._load(run.student.net, values, "student")
        self._load(run.criterion, values, "criterion")

    def _load(self, module: nn.Module, values: dict[str, Any], name: str) -> None:
        try:
            module.load_state_dict(values[name])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint in '{self.path}' does not fit the run: {fit(error)}") from error

    def locked(self) -> FolderLock:
        """The right to write here, as a context, which its holder may enter again; see ``lock``.

        Raises:
            ValueError: the folder holds something that is no run, or another process writes to it.
            OSError: it cannot be written to.
        """
        # the lock's own file would make it a run's
        if not self._lock.held:
            self._check_ownership()
        return self._lock

    def _check_ownership(self) -> None:
        if not (ownership.is_empty(self.path) or ownership.is_run(self.path)):
            raise ValueError(
                f"'{self.path}' holds no run but {ownership.strangers(self.path)}: give a new or an empty folder"
            )

    def check(self, overwrite: bool, resume: bool, run: TrainConfig | None = None) -> None:
        """Whether a run may start here; leaves nothing behind.

        Args:
            overwrite: whether an earlier run may be removed.
            resume: whether one may be continued.
            run: the configuration that replaces it; none of its files may be removed.

        Raises:
            ValueError: there is a run already, or something that is none.
            OSError: it is no folder, or cannot be written to.
        """
        self._check_ownership()
        if not ownership.is_empty(self.path):
            if not (overwrite or resume):
                raise ValueError(
                    f"'{self.path}' holds a run already: give --resume to continue it or --overwrite to start over"
                )
            if overwrite and run is not None:
                self._check_weights(run)
        for folder in (self.path, self.last.parent):
            if folder == self.path or folder.exists():
                ownership.check_writable(folder)

    def _check_weights(self, run: TrainConfig) -> None:
        """Raises ValueError where the run that replaces this one needs a file that would be removed."""
        removed = {path.resolve() for path in ownership.written(self.path)}
        for model in (run.student, run.teacher):
            if model is not None and model.weights and setup.weights_file(model.weights).resolve() in removed:
                raise ValueError(
                    f"--overwrite would remove the weights '{model.weights}' that the new run needs: give another "
                    "--out, or move them"
                )

    def create(self, run: TrainConfig) -> None:
        """Starts a run: nothing of an earlier one is left, and ``config.json`` is written.

        Raises:
            ValueError: the folder holds something that is no run, or another process writes to it.
            OSError: it cannot be written to.
        """
        with self.locked():
            ownership.remove(self.path)
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self.store_config(run)

    def store_config(self, run: TrainConfig) -> None:
        self.write_json("config.json", run.to_dict())
        self.__dict__["config"] = run

    def write_summary(self, values: dict[str, Any]) -> None:
        """``summary.json``, with the checksums of what is finished by it."""
        paths = {name: self.path / name for name in CHECKED}
        sums = {name: zlib.crc32(path.read_bytes()) for name, path in paths.items() if path.exists()}
        sums["config.json"] = self._course()
        self.write_json("summary.json", {**values, "checksums": {**sums, "summary.json": _checksum(values)}})

    def _course(self) -> int:
        return course.checksum(json.loads((self.path / "config.json").read_bytes()))

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        content = json.dumps(values, indent=2, allow_nan=False) + "\n"
        checkpoint.write_file(self.path / name, content.encode())


def fit(error: BaseException) -> str:
    """What keeps a state from loading, in a line: torch puts one under the other."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]


def _checksum(summary: dict[str, Any]) -> int:
    """CRC-32 of a summary's values, however they are spaced in the file."""
    values = {name: value for name, value in summary.items() if name != "checksums"}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
