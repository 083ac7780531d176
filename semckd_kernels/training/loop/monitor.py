"""What people look at during a run: progress bar, a line an epoch, CSV files, trackers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from ..config import TrainConfig
from ..errors import first_line
from ..run.folder import ATTENTION, RunFolder
from ..run.history import History
from ..run.rows import CsvFile
from . import trackers
from .trackers import TensorBoard, Tracker

STEP_COLUMNS = ("epoch", "step", "lr")


class Monitor:
    """Shows and stores what the trainer hands it; all numbers are on the host already.

    Args:
        folder: of the run.
        config: of the run.
        history: all rows so far: the CSV files are made of them, whatever an earlier process has left there.
        lr: learning rate of an epoch and a step, counted from 0.
        epoch, step: where the run starts or resumes, counted from 0.
        output: gets a line an epoch.
        quiet: there are no lines and no bar.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        history: History,
        lr: Callable[[int, int], float],
        epoch: int,
        step: int,
        output: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self.quiet = quiet
        self.config, self.history, self.lr = config, history, lr
        self.columns, self.steps_per_epoch = history.columns, history.steps_per_epoch
        self.output = sys.stdout if output is None else output
        done = epoch * self.steps_per_epoch + step
        self.files = {"metrics": CsvFile(folder.path / "metrics.csv", history.metrics, history.epochs)}
        if history.layers:
            self.files["attention"] = CsvFile(folder.path / "attention.csv", ATTENTION, history.attention_rows())
        if history.keep_steps:
            rows = ({**row, "lr": lr(row["epoch"] - 1, row["step"] - 1)} for row in history.step_rows())
            self.files["steps"] = CsvFile(folder.path / "steps.csv", (*STEP_COLUMNS, *self.columns), rows)
        self.trackers = trackers.make(folder, config, done)
        total = config.recipe.epochs * self.steps_per_epoch
        # no bar in a log file; dynamic terms would make every line another width
        hidden = True if quiet else None
        self.bar = tqdm(total=total, initial=done, unit="step", disable=hidden, leave=False, dynamic_ncols=True)

    def step_done(self) -> None:
        self.bar.update()

    def fetched(self, epoch: int, first: int, rows: Tensor, images_per_second: float) -> None:
        """Losses of steps, as soon as they are on the host.

        Args:
            epoch, first: of the first row, counted from 0.
            rows: ``[steps, len(columns)]``.
        """
        values = rows.tolist()
        self.history.add_steps(rows)
        if "steps" in self.files:
            for n, row in enumerate(values, start=first):
                place = {"epoch": epoch + 1, "step": n + 1, "lr": self.lr(epoch, n)}
                self.files["steps"].append({**place, **dict(zip(self.columns, row, strict=True))})
        if not values:
            return
        latest = dict(zip(self.columns, values[-1], strict=True))
        shown = {"img/s": f"{images_per_second:.0f}", **{name: f"{value:.3g}" for name, value in latest.items()}}
        self.bar.set_description(f"epoch {epoch + 1}/{self.config.recipe.epochs}", refresh=False)
        self.bar.set_postfix(shown, refresh=False)
        last = first + len(values)
        latest["lr"] = self.lr(epoch, last - 1)
        self._track("step", latest, epoch * self.steps_per_epoch + last, epoch + 1)

    def epoch_done(self, is_best: bool) -> None:
        """The last epoch of the history, once checkpoints hold it."""
        row = self.history.epochs[-1]
        epoch = int(row["epoch"])
        self.files["metrics"].append(row)
        if "attention" in self.files:
            for line in self.history.attention_rows(epoch - 1):
                self.files["attention"].append(line)
        found = {name: value for name, value in row.items() if name != "epoch" and value == value}
        self._track("epoch", found, epoch * self.steps_per_epoch, epoch)
        terms = ", ".join(
            f"{name.removeprefix('train_')} {row[name]:.4g}"
            for name in row
            if name.startswith("train_") and row[name] == row[name]
        )
        best = " (best)" if is_best else ""
        self.say(
            f"epoch {epoch}/{self.config.recipe.epochs}: test top-1 {row['test_top1']:.2%}{best}, train {terms}, "
            f"lr {row['lr']:.3g}, {row['images_per_second']:.0f} images/s"
        )

    def _track(self, group: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        for tracker in tuple(self.trackers):
            self._attempt(tracker, partial(tracker.log, group, values, step, epoch))

    def _attempt(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """A service that cannot be reached is no reason to stop: the same numbers are in the CSV files."""
        try:
            action()
        except Exception as error:
            if isinstance(tracker, TensorBoard):
                raise
            self.trackers.remove(tracker)
            name = self.config.logging.tracker
            self.say(f"warning: tracker {name} gets nothing from here on: {first_line(error)}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self.quiet:
            return
        tqdm.write(line, file=self.output)
        self.output.flush()

    def sync(self) -> None:
        """Onto the disk, with every checkpoint."""
        for file in self.files.values():
            file.sync()

    def close(self) -> None:
        self.bar.close()
        for file in self.files.values():
            file.close()
        for tracker in tuple(self.trackers):
            self._attempt(tracker, tracker.close)
