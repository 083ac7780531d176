"""Whether a run has diverged: its numbers are finite, so that it trains to its end, but absurd."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

# Times its size at the start from which a number is absurd. Losses of runs that learn stay below their first value, or
# within a small factor of it where a warm-up is missing; runs that diverge pass this factor within a few steps.
FACTOR = 1e4
HINT = "the run diverges, a lower --lr{} may help"


class Watch:
    """Looks at losses, and once an epoch at the test loss and the parameters; warns once of each.

    A loss term is compared with its value in the first step, which no update has spoiled. Terms that start near zero,
    such as KD between equal networks, are compared with 1 / weight instead: a weighted term of 1 is ordinary. So a term
    is absurd where ``term > FACTOR * max(term of the first step, 1 / weight)``; the test loss likewise with the
    cross-entropy; and parameters where ``max |p| > FACTOR * max(max |p| at the start, 1)``.

    Args:
        columns: the loss and its terms, as every step has them.
        weights: of the terms in the loss; 1 where a term is not named.
        flags: that set the weights, of the terms whose weight is worth lowering.
    """

    def __init__(
        self, columns: Sequence[str], weights: Mapping[str, float], flags: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.columns, self.weights = list(columns), [weights.get(name, 1.0) for name in columns]
        self.flags = flags
        self.first: list[float] | None = None
        self.largest: float | None = None
        # of each kind at most one: what it is about, when, and a sentence
        self.warnings: list[dict[str, Any]] = []

    def losses(self, epoch: int, first: int, rows: Tensor) -> str | None:
        """Looks at the losses ``[steps, len(columns)]`` of some steps, the first of them at a place counted from 0.

        Returns:
            A sentence for the log where this run is found to diverge; None otherwise, and ever after.
        """
        if self._has("loss") or not len(rows):
            return None
        if self.first is None:
            self.first = rows[0].tolist()
        floors = [1.0 / weight if weight else math.inf for weight in self.weights]
        limits = torch.tensor(list(map(max, self.first, floors)), dtype=rows.dtype) * FACTOR
        # what is not finite ends the run with a sentence of its own
        absurd = (rows > limits) & rows.isfinite()
        if not absurd.any():
            return None
        n = int(absurd.any(1).int().argmax())
        # the total is absurd because of a term
        terms = [m for m in range(len(self.columns)) if absurd[n, m] and self.columns[m] != "loss"]
        m = max(terms, key=lambda m: self.weights[m] * float(rows[n, m]), default=self.columns.index("loss"))
        term, value, before = self.columns[m], float(rows[n, m]), self.first[m]
        what = "the loss" if term == "loss" else f"the loss term '{term}'"
        lower = f" or {self.flags[term]}" if term in self.flags else ""
        return self._warn(
            "loss",
            term,
            f"{what} is {value:.3g} at epoch {epoch + 1}, step {first + n + 1}, and was {before:.3g} in the first "
            f"step: {HINT.format(lower)}",
            epoch,
            first + n,
        )

    def test_loss(self, epoch: int, loss: float) -> str | None:
        """Looks at the mean cross-entropy over the test images after an epoch, counted from 0; see :meth:`losses`."""
        before = self.first[self.columns.index("ce")] if self.first is not None else 1.0
        if self._has("test_loss") or loss <= FACTOR * max(before, 1.0):
            return None
        reason = "the networks' outputs are not finite" if not math.isfinite(loss) else "far above that of guessing"
        text = f"the test loss is {loss:.3g} after epoch {epoch + 1}, {reason}: {HINT.format('')}"
        return self._warn("test_loss", "test_loss", text, epoch)

    def start(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Looks at the parameters before the first step; what a checkpoint has brought stays."""
        if self.largest is None:
            self.largest = _largest(named)[1]

    def parameters(self, epoch: int, named: Iterable[tuple[str, Tensor]]) -> str | None:
        """Looks at all parameters after an epoch, counted from 0; waits for the device. See :meth:`losses`."""
        if self._has("parameters") or self.largest is None:
            return None
        name, largest = _largest(named)
        # a comparison that a value which is not a number fails, too
        if largest <= FACTOR * max(self.largest, 1.0):
            return None
        text = (
            f"the parameter '{name}' holds {largest:.3g} after epoch {epoch + 1}, and none held more than "
            f"{self.largest:.3g} at the start: {HINT.format('')}"
        )
        return self._warn("parameters", "parameters", text, epoch)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"first": self.first, "largest": self.largest, "warnings": [dict(found) for found in self.warnings]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.first, self.largest = state["first"], state["largest"]
        self.warnings = [dict(found) for found in state["warnings"]]

    def _has(self, kind: str) -> bool:
        return any(found["kind"] == kind for found in self.warnings)

    def _warn(self, kind: str, term: str, message: str, epoch: int, step: int | None = None) -> str:
        place = {"epoch": epoch + 1, "step": None if step is None else step + 1}
        self.warnings.append({"kind": kind, "term": term, **place, "message": message})
        return message


def _largest(named: Iterable[tuple[str, Tensor]]) -> tuple[str, float]:
    """The name of the parameter with the largest absolute value, and the value."""
    tensors = {name: p.detach() for name, p in named if p.numel()}
    if not tensors:
        return "", 0.0
    sizes = torch.stack([p.abs().amax().float() for p in tensors.values()]).cpu()
    n = int(sizes.argmax())
    return list(tensors)[n], float(sizes[n])
