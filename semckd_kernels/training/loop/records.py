"""Losses of steps: kept on the device step by step, fetched together, and added up over an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .timers import PARTS


class TrainingError(RuntimeError):
    """A training run that cannot continue, with the reason in one sentence."""


class StepRecords:
    """The records of the steps since the last fetch (see Distiller), on the device.

    Args:
        width: values of a record.
        capacity: the largest number of steps between two fetches.
    """

    def __init__(self, width: int, capacity: int, device: torch.device) -> None:
        self._rows = torch.zeros(capacity, width, device=device)
        self._sizes: list[int] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, record: Tensor, images: int) -> None:
        """Keeps the record of a batch of so many images; nothing waits for the device."""
        self._rows[len(self._sizes)].copy_(record)
        self._sizes.append(images)

    def take(self) -> tuple[Tensor, list[int]]:
        """Records ``[steps, width]`` on the host in fp64, and the images of each; waits for the device."""
        sizes, self._sizes = self._sizes, []
        return self._rows[: len(sizes)].cpu().double(), sizes


def guilty_term(columns: Sequence[str], row: Sequence[float]) -> str | None:
    """The first term of a record that is not finite; the loss where only the weighted sum is not."""
    values = dict(zip(columns, row, strict=False))
    return next((name for name in (*columns[1:], columns[0]) if not math.isfinite(values[name])), None)


def first_problem(columns: Sequence[str], rows: Tensor) -> tuple[int, str, str] | None:
    """The first row with a loss that is not finite: its number, the guilty term, and all terms as text."""
    for n, row in enumerate(rows[:, : len(columns)].tolist()):
        if (name := guilty_term(columns, row)) is not None:
            values = dict(zip(columns, row, strict=True))
            terms = ", ".join(f"{term} {value:.4g}" for term, value in values.items() if term != "hits")
            return n, f"the term '{name}' is {values[name]}", terms
    return None


class EpochSums:
    """Sums over the steps of an epoch, of this process; they survive in checkpoints.

    Rows are added one by one, so that the sums do not depend on how often records were fetched.
    """

    def __init__(self, width: int, hits: int) -> None:
        self.hits = hits
        # losses and attention times images; hits are a sum already
        self.values = torch.zeros(width, dtype=torch.float64)
        self.images = 0
        self.steps = 0
        self.seconds = 0.0
        self.parts_ms = dict.fromkeys(PARTS, 0.0)

    def add(self, rows: Tensor, sizes: Sequence[int], parts_ms: dict[str, float]) -> None:
        """Adds fetched records, and the time of their steps by part."""
        for row, images in zip(rows, sizes, strict=True):
            scale = torch.full_like(row, float(images))
            scale[self.hits] = 1.0
            self.values.addcmul_(row, scale)
        self.images += sum(sizes)
        self.steps += len(sizes)
        for part, ms in parts_ms.items():
            self.parts_ms[part] += ms

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        scalars = {"images": self.images, "steps": self.steps, "seconds": self.seconds}
        return {"values": self.values.clone(), "parts_ms": dict(self.parts_ms), **scalars}

    def load_state(self, state: dict[str, Any]) -> None:
        self.values = state["values"].clone()
        self.images, self.steps, self.seconds = state["images"], state["steps"], state["seconds"]
        self.parts_ms = dict(state["parts_ms"])
