"""A run from Python, a notebook or a sweep: :func:`train` makes one, :func:`load` takes its student out of it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import config as configuration
from .. import distributed, named_code, preparation, process
from ..config import TrainConfig
from ..data import Images
from ..flags import written
from ..loop.signals import Stopped
from ..run import resume as resuming
from ..run.folder import RunFolder
from . import configs
from .start import Refused, Start
from .start import run as start_run

# what a run sets for its process belongs to one run
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Accuracy:
    """Of the test set, from 0 to 1, after an epoch counted from 1."""

    epoch: int
    top1: float
    top5: float


@dataclass(frozen=True)
class Summary:
    """What a finished run comes to.

    Attributes:
        folder: of the run; ``report.html``, ``metrics.csv`` and ``checkpoints/`` are in it.
        best: of the epoch with the best top-1 accuracy, whose parameters :func:`load` gives.
        last: of the last epoch.
        seconds: of all epochs.
        values: the whole ``summary.json``: counts, split of a step, layers, warnings, environment.
    """

    folder: Path
    best: Accuracy
    last: Accuracy
    seconds: float
    values: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, values: Mapping[str, Any]) -> Summary:
        """From the values of ``summary.json``."""
        best, last = (Accuracy(**values["accuracy"][name]) for name in ("best", "last"))
        return cls(folder, best, last, values["seconds"], values)


@dataclass(frozen=True)
class Run:
    """A run as :func:`load` gives it.

    Attributes:
        student: the network itself in eval mode: images ``[B, C, H, W]`` to logits ``[B, classes]``.
        layers: module paths of the maps that were distilled, as ``semckd_kernels.FeatureMaps(student, layers)`` takes
            them.
        images: what the student takes, with the mean and the deviation of its inputs.
        config: of the run.
        epochs: that the parameters were trained for.
        summary: None where the run is not finished.
        metrics: the rows of ``metrics.csv``, one an epoch.
    """

    student: nn.Module
    layers: tuple[str, ...]
    images: Images
    config: TrainConfig
    epochs: int
    summary: Summary | None
    metrics: list[dict[str, float]]


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Summary:
    """Trains a student to the end of its recipe, as ``semckd train`` does.

    The process is left as it was found: torch's threads, number formats, algorithms, default type and device, random
    generators, process groups and signal handlers. Runs in any thread, one at a time in a process. In the main thread
    Ctrl-C and SIGTERM are answered after the step at hand: a checkpoint is written and the signal is given again, so
    that Ctrl-C raises KeyboardInterrupt; elsewhere they never reach the run. Under torchrun every process calls it.

    Args:
        config: a configuration, or what :func:`make_config` makes one of: a file, or fields by name.
        out: the folder to write the run into.
        resume: continue from the last checkpoint, bit for bit; start a run where there is none.
        overwrite: replace the run that is in the folder.
        quiet: print nothing.

    Raises:
        ValueError: the configuration does not fit, or the folder holds a run and neither ``resume`` nor ``overwrite``
            is given; nothing is changed.
        TrainingError, CheckpointError: a loss is not finite, or a checkpoint cannot be written; both are RuntimeErrors.

    Example:
        >>> import tempfile
        >>> from semckd_kernels import training
        >>> folder = tempfile.mkdtemp()
        >>> fields = {"student.name": "resnet8", "recipe.epochs": 1, "hardware.device": "cpu"}
        >>> summary = training.train(fields, folder, quiet=True)
        >>> summary.best.epoch, summary.best.top1 > 0.3
        (1, True)
        >>> training.load(folder).student.training
        False
    """
    # a file may be somebody else's: see named_code
    by_hand = isinstance(config, (TrainConfig, Mapping))
    with _ONE_AT_A_TIME, process.kept():
        wanted = config if isinstance(config, TrainConfig) else configs.make_config(config)
        wanted = configuration.replace(wanted, **configs.fitted(configuration.flatten(wanted)))
        wanted = configuration.replace(wanted, **{"hardware.world_size": distributed.world_size()})
        named = (wanted.student, wanted.teacher, wanted.data) if by_hand else ()
        names = [part.name for part in named if part is not None]
        folder = RunFolder(out)
        if resume and (stored := resuming.stored_config(folder)) is not None:
            _check_course(stored, wanted, folder)
        try:
            with (
                distributed.joined(wanted.hardware.device) as ranks,
                distributed.together(ranks),
                named_code.allowed(names),
            ):
                found = start_run(Start(wanted, folder, ranks, resume, overwrite, quiet))
                return Summary.of(folder.path, ranks.gather(found)[0])
        except Stopped as caught:
            stopped = caught
    if not quiet:
        print(stopped, file=sys.stderr)
    # to the handlers of before
    signal.raise_signal(stopped.number)
    raise stopped


def _check_course(stored: TrainConfig, wanted: TrainConfig, folder: RunFolder) -> None:
    if differing := configs.changes_of_course(stored, wanted):
        changes = "; ".join(f"{name} was {written(a)} and is now {written(b)}" for name, (a, b) in differing.items())
        raise Refused(f"the run in '{folder.path}' cannot be resumed with another configuration: {changes}")


def load(run: str | Path, which: str = "best", *, device: str = "cpu", allow_code: bool = False) -> Run:
    """The trained student of a run, and what it was trained with.

    Neither its teacher nor, of a finished run, its data need be there any more.

    Args:
        run: the run's folder.
        which: the checkpoint: ``"best"`` by test accuracy, or ``"last"``.
        device: where to.
        allow_code: import the code that a stored name ``package.module:factory`` stands for, wherever it lies; without,
            it must be an installed package, or imported already.

    Raises:
        ValueError, OSError: the folder is no run's.
        CheckpointError: there is no such checkpoint, or it is damaged or of another run.

    Example: see :func:`train`.
    """
    folder = RunFolder(run)
    values = folder.read_checkpoint(which)
    preparation.check_device(device)
    with torch.device("cpu"), named_code.allowed(None if allow_code else ()):
        images = folder.images()
        net = folder.student(images, torch.device(device), values)
    summary = Summary.of(folder.path, folder.summary) if folder.is_finished else None
    # an earlier version kept no place there
    epochs = int(values.get("epoch", values["best"]["epoch"]))
    return Run(net.release(), net.layers, images, folder.config, epochs, summary, folder.metrics())
