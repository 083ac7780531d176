"""Every row that a run has written: checkpoints hold them, the CSV files of its folder are made from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .folder import ATTENTION, RunFolder

Layers = Sequence[tuple[str, str]]


class History:
    """Rows of epochs, and of steps where they are kept.

    Checkpoints hold all of them, so that a resumed run restores its files whatever has happened to them. An epoch is
    17 numbers and the attention's S*T; a step is its losses in fp32, and is held only with ``logging.steps``.

    Args:
        steps_per_epoch: batches of one process.
        columns: names of the losses of a step.
        layers: student and teacher layer of each weight of the attention.
        metrics: names of the numbers of an epoch.
        keep_steps: whether rows of steps are held.
    """

    def __init__(
        self, steps_per_epoch: int, columns: Sequence[str], layers: Layers, metrics: Sequence[str], keep_steps: bool
    ) -> None:
        self.steps_per_epoch, self.columns, self.layers = steps_per_epoch, list(columns), list(layers)
        self.metrics, self.keep_steps = tuple(metrics), keep_steps
        self.epochs: list[dict[str, float]] = []
        self._attention: list[list[float]] = []
        self._steps: list[Tensor] = []

    def add_epoch(self, row: dict[str, float], attention: Sequence[float]) -> None:
        self.epochs.append(row)
        self._attention.append(list(attention))

    def add_steps(self, rows: Tensor) -> None:
        """Losses ``[steps, len(columns)]`` of the next steps."""
        if self.keep_steps:
            # they come from an fp32 record
            self._steps.append(rows.float())

    def attention_rows(self, first: int = 0) -> Iterator[dict[str, Any]]:
        """The lines of ``attention.csv``, from an epoch on that is counted from 0."""
        for epoch, weights in enumerate(self._attention[first:], start=first + 1):
            for (student, teacher), weight in zip(self.layers, weights, strict=True):
                yield dict(zip(ATTENTION, (epoch, student, teacher, weight), strict=True))

    def step_rows(self) -> Iterator[dict[str, Any]]:
        """The lines of ``steps.csv`` without their learning rates."""
        for n, row in enumerate(self._all_steps().double().tolist()):
            epoch, step = divmod(n, self.steps_per_epoch)
            yield {"epoch": epoch + 1, "step": step + 1, **dict(zip(self.columns, row, strict=True))}

    def _all_steps(self) -> Tensor:
        if len(self._steps) != 1:
            self._steps = [torch.cat([torch.zeros(0, len(self.columns)), *self._steps])]
        return self._steps[0]

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        attention = torch.tensor(self._attention, dtype=torch.float64).reshape(len(self.epochs), len(self.layers))
        return {
            "epochs": [dict(row) for row in self.epochs],
            "attention": attention,
            "steps": self._all_steps() if self.keep_steps else None,
        }

    def load_state(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Takes what a checkpoint at a place holds.

        Raises:
            ValueError: it is not the rows up to that place.
        """
        self.epochs = self._known(state["epochs"])
        self._attention = state["attention"].tolist()
        self._check([row["epoch"] for row in self.epochs] == list(range(1, epoch + 1)), "epochs")
        self._check(state["attention"].shape == (epoch, len(self.layers)), "attention")
        if self.keep_steps:
            shape = (epoch * self.steps_per_epoch + step, len(self.columns))
            self._check(state["steps"].shape == shape, "steps")
            self._steps = [state["steps"].float()]

    def read(self, folder: RunFolder, epoch: int, step: int) -> None:
        """Takes the rows of a folder's files, for a checkpoint that is older than this class.

        Raises:
            ValueError: a file is damaged, or lacks rows up to the place.
        """
        self.epochs = self._known(folder.metrics()[:epoch])
        self._check(len(self.epochs) == epoch, "metrics.csv")
        found = folder.attention() if self.layers else None
        if self.layers and epoch:
            self._check(found is not None and len(found.weight) >= epoch, "attention.csv")
            assert found is not None
            self._attention = found.weight[:epoch].flatten(1).tolist()
        else:
            self._attention = [[] for _ in self.epochs]
        if self.keep_steps:
            rows = folder.steps()[: epoch * self.steps_per_epoch + step]
            self._check(len(rows) == epoch * self.steps_per_epoch + step, "steps.csv")
            self._steps = [
                torch.tensor([[row[name] for name in self.columns] for row in rows]).reshape(-1, len(self.columns))
            ]

    def _known(self, rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Rows with the columns of this run; a version with others has written them, perhaps."""
        return [{name: row.get(name, math.nan) for name in self.metrics} for row in rows]

    @staticmethod
    def _check(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{what}: these are not the rows up to the checkpoint")
