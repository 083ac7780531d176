"""From a configuration to a run: everything is checked on all processes alike, then it starts, or resumes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar, cast

from .. import preparation
from ..config import TrainConfig
from ..distributed import Ranks
from ..loop import trainer as engine
from ..loop.records import TrainingError
from ..loop.trainer import Trainer
from ..preparation import Setup
from ..run import resume
from ..run.checkpoint import CheckpointError
from ..run.folder import RunFolder

Result = TypeVar("Result")


class Refused(ValueError):
    """What keeps a run from starting, in one sentence, on all processes alike."""


class Start(NamedTuple):
    """A run that is to start.

    Attributes:
        config: of the run.
        folder: where it is written.
        ranks: the processes, of which the first one writes and prints.
        resume: continue what is in the folder; starts where there is nothing.
        overwrite: replace it.
        quiet: print nothing.
        notes: what is said before the first step.
    """

    config: TrainConfig
    folder: RunFolder
    ranks: Ranks
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    notes: Sequence[str] = ()

    def check(self) -> None:
        """Whether the run's folder can be written to, see ``RunFolder.check``."""
        if self.ranks.is_main:
            self.folder.check(self.overwrite, self.resume, self.config)

    def say(self, text: str) -> None:
        if self.ranks.is_main and not self.quiet:
            print(text, flush=True)

    def mention(self, text: str) -> None:
        """What has been mended, beside what is asked for."""
        if self.ranks.is_main and not self.quiet:
            print(f"semckd train: {text}", file=sys.stderr, flush=True)


def run(start: Start) -> dict[str, Any]:
    """Trains to the end and returns the summary, on all processes but the first an empty one.

    Raises:
        Refused: something does not exist, does not fit, or is in the way; nothing is changed.
        TrainingError, CheckpointError, OSError: it fails on the way.
        Stopped: a signal came, and the checkpoint is written.
    """
    with ExitStack() as held:
        return _run(start, held)


def _run(start: Start, held: ExitStack) -> dict[str, Any]:
    config, folder, ranks = start.config, start.folder, start.ranks
    if start.resume:
        lacking = ranks.gather(resume.lacking(folder, config) if ranks.is_main else None)[0]
        if lacking is None:
            return _finished(start)
        if folder.is_finished:
            start.mention(f"resumes the finished run: {lacking}")
    attempt(ranks, start.check)
    setup = attempt(ranks, lambda: preparation.prepare(config, ranks))
    if len(set(steps := ranks.gather(setup.data.steps_per_epoch))) > 1:
        raise Refused(f"processes must have equally many steps an epoch, got {', '.join(map(str, steps))}")

    def lock() -> None:
        if ranks.is_main:
            held.enter_context(folder.locked())
        # another process may have been here meanwhile
        start.check()

    attempt(ranks, lock)
    state = attempt(ranks, lambda: resume.load(folder, config) if start.resume else None)
    if (problem := _different_places(folder, state, ranks)) is not None:
        raise Refused(problem)
    trainer = attempt(ranks, lambda: Trainer(setup, folder, state, quiet=start.quiet))
    if start.resume and (note := resume.source(folder)) is not None:
        start.mention(note)
    # past the checks: from here on the folder changes
    ranks.on_main(lambda: _write(config, folder, state), CheckpointError)
    start.say(describe(setup, state))
    for note in (*start.notes, *setup.data.notes):
        start.say(f"note: {note}")
    summary = engine.finish(trainer)
    if trainer.lost_best is not None:
        raise TrainingError(trainer.lost_best)
    if ranks.is_main:
        best, last = summary["accuracy"]["best"], summary["accuracy"]["last"]
        start.say(f"best top-1 {best['top1']:.2%} after epoch {best['epoch']}, last {last['top1']:.2%}: {folder.path}")
    return summary


def attempt(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """What an action of every process returns.

    Raises:
        Refused: on all processes where it failed on any: one must not wait for others that have left.
    """
    result, problem = None, None
    try:
        result = action()
    except (ValueError, CheckpointError, ImportError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"'{error.filename}': {error.strerror}" if error.filename and error.strerror else str(error)
    if (problem := ranks.agree(problem)) is not None:
        raise Refused(problem)
    return cast(Result, result)


def _finished(start: Start) -> dict[str, Any]:
    """Of a run that has come to its end: the report, where that is missing."""
    folder = start.folder
    summary = folder.summary
    best = summary["accuracy"]["best"]
    start.say(f"the run in '{folder.path}' is finished: best top-1 {best['top1']:.2%} after epoch {best['epoch']}")
    if start.ranks.is_main and not resume.has_report(folder):
        try:
            with folder.locked():
                engine.write_report(folder)
        except ValueError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            raise TrainingError(f"the report cannot be made: '{error.filename}': {error.strerror}") from error
        start.say("its report is remade")
    return summary


def _different_places(folder: RunFolder, state: dict[str, Any] | None, ranks: Ranks) -> str | None:
    """What to say where processes would resume from different steps, and wait for each other in vain."""
    places = ranks.gather("no checkpoint" if state is None else f"epoch {state['epoch'] + 1}, step {state['step']}")
    if len(set(places)) == 1:
        return None
    found = ", ".join(f"process {rank} {place}" for rank, place in enumerate(places))
    return f"processes do not find the same checkpoint in '{folder.path}': {found}; all of them must see one folder"


def _write(config: TrainConfig, folder: RunFolder, state: dict[str, Any] | None) -> None:
    """The folder of a run."""
    try:
        if state is None:
            folder.create(config)
        else:
            (folder.path / "summary.json").unlink(missing_ok=True)
            folder.store_config(config)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write to '{folder.path}': {reason}") from error


def describe(run: Setup, state: dict[str, Any] | None) -> str:
    """What is going to happen, in a few lines."""
    config, data = run.config, run.data
    recipe, hardware = config.recipe, config.hardware
    teacher = f" from {config.teacher.name}" if config.teacher is not None else ""
    processes = f" x {hardware.world_size} processes" if hardware.world_size > 1 else ""
    steps = f" x {recipe.accumulate} steps" if recipe.accumulate > 1 else ""
    total = f" = {config.global_batch_size}" if processes or steps else ""
    noise = f"; {config.data.label_noise:.0%} of the training labels are drawn anew" if config.data.label_noise else ""
    lines = [
        f"{config.student.name}{teacher} by {config.method.name} on {data.name}: {data.train_count} training and "
        f"{data.test_count} test images, {data.classes} classes{noise}",
        f"{recipe.epochs} epochs of {data.steps_per_epoch} steps, batch {recipe.batch_size}{processes}{steps}{total}, "
        f"{hardware.precision} on {run.device}",
    ]
    if run.teacher is not None and (part := run.teacher.prepared) is not None:
        ours = f", {part['winograd']} of them by Winograd's algorithm" if part["winograd"] else ""
        lines.append(
            f"teacher prepared: {part['norms']} BatchNorms and {part['relus']} ReLUs in {part['convolutions']} "
            f"convolutions{ours}"
        )
    if state is not None and state["epoch"] == recipe.epochs:
        lines.append("all epochs are trained")
    elif state is not None:
        lines.append(f"resumes in epoch {state['epoch'] + 1}, after step {state['step']}")
    return "\n".join(lines)
