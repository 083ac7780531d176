"""What people look at while a run goes on: progress bar, a line an epoch, CSV files, TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from .config import TrainConfig
from .run_folder import ACCURACIES, ATTENTION, METRICS, CsvFile, RunFolder

STEP_COLUMNS = ("epoch", "step", "lr")


class Monitor:
    """Shows and stores what the trainer hands it; all numbers are on the host already.

    Args:
        folder: of the run, with what an earlier process has written.
        config: of the run.
        columns: names of the losses that every step has: the loss and its terms.
        layers: student and teacher layer of each weight of the attention.
        steps_per_epoch: batches of one process.
        epoch, step: where the run starts or goes on, counted from 0; later rows of the files are cut off.
        output: gets a line an epoch.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        columns: Sequence[str],
        layers: Sequence[tuple[str, str]],
        steps_per_epoch: int,
        epoch: int,
        step: int,
        output: TextIO | None = None,
    ) -> None:
        self.columns, self.layers, self.config = list(columns), list(layers), config
        self.output = sys.stdout if output is None else output
        self.steps_per_epoch = steps_per_epoch
        done = epoch * steps_per_epoch + step
        self.metrics_file = CsvFile(folder.path / "metrics.csv", METRICS, epoch)
        self.attention_file = self.steps_file = None
        if self.layers:
            self.attention_file = CsvFile(folder.path / "attention.csv", ATTENTION, epoch * len(self.layers))
        if config.logging.steps:
            self.steps_file = CsvFile(folder.path / "steps.csv", (*STEP_COLUMNS, *self.columns), done)
        self.board = _board(folder, config, done)
        total = config.recipe.epochs * steps_per_epoch
        # no bar in a log file; dynamic terms would make every line another width
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None, leave=False, dynamic_ncols=True)

    def step_done(self) -> None:
        self.bar.update()

    def fetched(self, epoch: int, first: int, rows: Tensor, lrs: Sequence[float], images_per_second: float) -> None:
        """Losses of steps, as soon as they are on the host.

        Args:
            epoch, first: of the first row, counted from 0.
            rows: ``[steps, len(columns)]``.
            lrs: learning rate of each.
        """
        values = rows.tolist()
        if self.steps_file is not None:
            for n, (row, lr) in enumerate(zip(values, lrs, strict=True)):
                place = {"epoch": epoch + 1, "step": first + n + 1, "lr": lr}
                self.steps_file.append({**place, **dict(zip(self.columns, row, strict=True))})
        if not values:
            return
        latest = dict(zip(self.columns, values[-1], strict=True))
        shown = {"img/s": f"{images_per_second:.0f}", **{name: f"{value:.3g}" for name, value in latest.items()}}
        self.bar.set_description(f"epoch {epoch + 1}/{self.config.recipe.epochs}", refresh=False)
        self.bar.set_postfix(shown, refresh=False)
        if self.board is not None:
            done = epoch * self.steps_per_epoch + first + len(values)
            for name, value in latest.items():
                self.board.add_scalar(f"step/{name}", value, done)
            self.board.add_scalar("step/lr", lrs[-1], done)

    def epoch_done(self, row: dict[str, float], attention: Sequence[float], is_best: bool) -> None:
        """The row of a finished epoch, and the mean attention by pair of layers."""
        # an empty cell is a term that the method lacks, or a time that cannot be measured
        absent = {name for name, value in row.items() if value != value and name not in ACCURACIES}
        self.metrics_file.append({name: "" if name in absent else value for name, value in row.items()})
        epoch = int(row["epoch"])
        for (student, teacher), weight in zip(self.layers, attention, strict=True):
            assert self.attention_file is not None
            self.attention_file.append(dict(zip(ATTENTION, (epoch, student, teacher, weight), strict=True)))
        if self.board is not None:
            for name, value in row.items():
                if name != "epoch" and value == value:
                    self.board.add_scalar(f"epoch/{name}", value, epoch)
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

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line, file=self.output)
        self.output.flush()

    def sync(self) -> None:
        """Onto the disk, before a checkpoint that counts on it."""
        for file in (self.metrics_file, self.attention_file, self.steps_file):
            if file is not None:
                file.sync()

    def close(self) -> None:
        self.bar.close()
        for file in (self.metrics_file, self.attention_file, self.steps_file, self.board):
            if file is not None:
                file.close()


def _board(folder: RunFolder, config: TrainConfig, done: int) -> Any:
    """TensorBoard's writer, unless switched off or not installed."""
    wanted = config.logging.tensorboard
    if wanted is False or (wanted is None and find_spec("tensorboard") is None):
        return None
    from torch.utils.tensorboard import SummaryWriter

    # what an earlier process has logged after the checkpoint disappears
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=done if done else None)
