"""The first steps of one run by two backends, in turns: whether their losses agree, and what a step takes by each."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..training import preparation as setup
from ..training import schedules
from ..training.config import TrainConfig
from ..training.loop.trainer import Trainer
from ..training.report.units import duration
from ..training.run.folder import RunFolder

# Two runs that differ by the backend alone: the first step has equal parameters, the second shows the gradients.
# Orders of summation give 1e-7 there, a gradient wrong by 1% gives 3e-4 (measured); from the third step on, training
# multiplies rounding errors, up to percents after some twenty steps.
COMPARED_STEPS = 2
COMPARED_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference of the losses of two runs: in the first steps, and in all steps."""

    steps: int
    first_steps: float
    all_steps: float

    @property
    def holds(self) -> bool:
        return self.first_steps <= COMPARED_TOLERANCE


@dataclass(frozen=True)
class Step:
    """A step's loss, and its seconds."""

    loss: float
    seconds: float


def compare(ours: list[float], reference: list[float]) -> Agreement:
    """Compares the losses of two runs step by step."""
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(ours, reference, strict=True)]
    # max() would pass over a NaN
    apart = [math.inf if math.isnan(x) else x for x in apart]
    return Agreement(min(COMPARED_STEPS, len(apart)), max(apart[:COMPARED_STEPS]), max(apart))


def run(ours: TrainConfig, reference: TrainConfig, count: int) -> tuple[Agreement, str]:
    """Trains ``count`` steps of both, one of each in turns, and writes nothing.

    Returns:
        Whether the losses agree, and two sentences that say so and what a step takes: medians of the steps behind
        those that are compared, which pay for what is done once.
    """
    pairs = list(islice(zip(steps(ours), steps(reference), strict=True), count))
    sides = list(zip(*pairs, strict=True))
    agreement = compare(*([step.loss for step in side] for side in sides))
    timed = [side[COMPARED_STEPS:] or side for side in sides]
    fast, slow = (statistics.median(step.seconds for step in side) for side in timed)
    text = (
        f"SemCKD by the plain reference and by our kernels, same seed: the losses of the first {agreement.steps} steps "
        f"{'agree' if agreement.holds else 'DISAGREE'}, to {agreement.first_steps:.1e} relative (limit "
        f"{COMPARED_TOLERANCE:.0e}). Over {len(pairs)} steps they differ by up to {agreement.all_steps:.1e}: the sums "
        "are ordered differently, and training multiplies such rounding errors.\n"
        f"A step of {ours.recipe.batch_size} images takes {duration(slow)} by the reference and {duration(fast)} by "
        f"our kernels, medians of {len(timed[0])} in turns. A step this small is mostly overhead; steps of full size "
        "are measured by `pytest bench/`."
    )
    return agreement, text


def steps(config: TrainConfig) -> Iterator[Step]:
    """The steps of a new run, one a turn, without evaluation and checkpoints."""
    # a trainer writes only where it is run
    trainer = Trainer(setup.prepare(config), RunFolder(Path("unwritten")))
    column = trainer.distiller.columns.index("loss")
    for epoch in range(config.recipe.epochs):
        for number, batch in enumerate(trainer.setup.data.train_batches(epoch)):
            schedules.set_lr(trainer.optimizer, trainer.lr(epoch, number))
            begin = time.perf_counter()
            # the loss waits for the device
            loss = trainer.run_step(batch, 1.0, True)[column].item()
            yield Step(loss, time.perf_counter() - begin)
