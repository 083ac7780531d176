"""Where metrics go besides the CSV files: TensorBoard, Weights & Biases, MLflow, by their own clients.

Accounts, projects and servers are what the clients' own variables of the environment say, such as ``WANDB_MODE``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ...install import pip_install
from ..config import TrainConfig, flatten
from ..errors import first_line
from ..run.folder import RunFolder
from .records import TrainingError

# of projects and experiments, unless the environment has another
PROJECT = "semckd"
# in a run's folder: which run of the service is this one, so that a resumed run continues there
FILE = "tracker.json"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


class Tracker(ABC):
    """Takes metrics as they come."""

    @abstractmethod
    def log(self, group: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        """Metrics of a step or of an epoch.

        Args:
            group: ``"step"`` or ``"epoch"``, before the names.
            values: by name.
            step: steps so far, over all epochs.
            epoch: counted from 1.
        """

    @abstractmethod
    def close(self) -> None:
        """Nothing comes any more."""


class TensorBoard(Tracker):
    """Files in the run's folder; what an earlier process has logged after the checkpoint disappears."""

    def __init__(self, folder: RunFolder, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=done if done else None)

    def log(self, group: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step if group == "step" else epoch)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases; of rows that come a second time after a crash it keeps the first, which are the same.

    Its files are in the run's folder ``wandb``.
    """

    def __init__(self, folder: RunFolder, config: TrainConfig) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.path.resolve().name,
            id=_stored(folder, "wandb"),
            resume="allow",
            dir=str(folder.path),
            config=flatten(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        _store(folder, "wandb", self.run.id)

    def log(self, group: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        self.run.log({**{f"{group}/{name}": value for name, value in values.items()}, "epoch": epoch}, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow(Tracker):
    """A run of MLflow, whose parameters are the configuration's values."""

    def __init__(self, folder: RunFolder, config: TrainConfig) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        self.client = mlflow.MlflowClient()
        run_id = _stored(folder, "mlflow")
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            known = self.client.get_experiment_by_name(name)
            experiment = self.client.create_experiment(name) if known is None else known.experiment_id
            run_id = self.client.create_run(experiment, run_name=folder.path.resolve().name).info.run_id
            values = [self.entities.Param(name, str(value)) for name, value in flatten(config).items()]
            self.client.log_batch(run_id, params=values)
            _store(folder, "mlflow", run_id)
        else:
            self.client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id

    def log(self, group: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        now = int(1e3 * time.time())
        metrics = [self.entities.Metric(f"{group}/{name}", value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def check(name: str) -> None:
    """Raises ValueError where the package of a tracker is missing."""
    if name in PACKAGES and find_spec(name) is None:
        raise ValueError(f"tracker {name} is not installed: run {pip_install(PACKAGES[name])}")


def make(folder: RunFolder, config: TrainConfig, done: int) -> list[Tracker]:
    """The run's trackers: TensorBoard unless switched off or not installed, and the one that is asked for.

    Raises:
        TrainingError: that one does not start, as without an account.
    """
    found: list[Tracker] = []
    wanted, name = config.logging.tensorboard, config.logging.tracker
    if wanted or (wanted is None and find_spec("tensorboard") is not None):
        found.append(TensorBoard(folder, done))
    try:
        if name == "wandb":
            found.append(WeightsAndBiases(folder, config))
        elif name == "mlflow":
            found.append(Mlflow(folder, config))
    # of a client, a server or the way between them
    except Exception as error:
        hint = "; WANDB_MODE=offline keeps its files here" if name == "wandb" else ""
        raise TrainingError(f"tracker {name} does not start: {first_line(error)}{hint}") from error
    return found


def _stored(folder: RunFolder, name: str) -> str | None:
    """The service's name of this run; None where it has none there."""
    try:
        values = json.loads((folder.path / FILE).read_bytes())
        return str(values["id"]) if values["tracker"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(folder: RunFolder, name: str, identity: str) -> None:
    folder.write_json(FILE, {"tracker": name, "id": identity})
