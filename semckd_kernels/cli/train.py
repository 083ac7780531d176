"""``semckd train``: checks everything, then starts a run or resumes one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from ..training import distributed
from ..training import preparation as setup
from ..training.config import TrainConfig
from ..training.distributed import Ranks
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE, first_line
from ..training.flags import in_flags
from ..training.loop import trainer as engine
from ..training.loop.records import TrainingError
from ..training.loop.signals import Stopped
from ..training.loop.trainer import Trainer
from ..training.preparation import Setup
from ..training.run import resume
from ..training.run.checkpoint import CheckpointError
from ..training.run.folder import RunFolder
from . import arguments, seeds
from .seeds import Planned

Result = TypeVar("Result")


class Refused(Exception):
    """What keeps a run from starting, in one sentence, on all processes alike."""


def train(args: argparse.Namespace) -> int:
    """Returns the exit code; see ``cli``."""
    try:
        planned = _plan(args, args.out)
        ranks = distributed.connect(planned[0].config.hardware.device)
    except (ValueError, OSError, RuntimeError) as error:
        return _fail(str(error), EXIT_USAGE)
    try:
        if args.seeds is None:
            return _one(args, planned[0], ranks)
        # before the first of them is trained
        for run in planned:
            _attempt(ranks, partial(_check, args, run, ranks))
        return seeds.train(planned, ranks, lambda run: _one(args, run, ranks), lambda text: _say(ranks, text))
    except Refused as refused:
        return _fail(str(refused), EXIT_USAGE, ranks)
    finally:
        distributed.disconnect()


def _plan(args: argparse.Namespace, out: Path) -> list[Planned]:
    if args.resume and args.overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it: give one of them")
    return seeds.plan(arguments.given(args), out, distributed.world_size(), args.resume, args.seeds)


def _check(args: argparse.Namespace, run: Planned, ranks: Ranks) -> None:
    """Whether the run's folder can be written to, see ``RunFolder.check``."""
    if ranks.is_main:
        run.folder.check(args.overwrite, args.resume, run.config)


def _one(args: argparse.Namespace, run: Planned, ranks: Ranks) -> int:
    """Trains a run or resumes it; returns the exit code."""
    folder = run.folder
    try:
        with distributed.together(ranks), ExitStack() as held:
            return _train(args, run, ranks, held)
    except distributed.LostPeer as lost:
        where = f"continues from '{folder.last}'" if folder.last.exists() else "starts over, there is no checkpoint yet"
        return _fail(f"{lost}: --resume {where}", EXIT_FAILED)
    except Refused as refused:
        return _fail(str(refused), EXIT_USAGE, ranks)


def print_config(args: argparse.Namespace) -> int:
    """Prints the configuration that a run would have, as ``config.json`` holds it; returns the exit code."""
    if args.resume and args.out is None:
        return _fail("--resume continues the run in a folder: give --out DIR", EXIT_USAGE)
    try:
        planned = _plan(args, args.out or Path("a new run"))
    except (ValueError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    first, last = planned[0], planned[-1]
    for note in first.notes:
        print(f"note: {note}", file=sys.stderr)
    if last is not first:
        print(
            f"note: this is seed {first.config.recipe.seed} of those up to {last.config.recipe.seed}", file=sys.stderr
        )
    print(first.config.to_json(), end="")
    return 0


def _train(args: argparse.Namespace, planned: Planned, ranks: Ranks, held: ExitStack) -> int:
    folder, config = planned.folder, planned.config
    if args.resume:
        lacking = ranks.gather(resume.lacking(folder, config) if ranks.is_main else None)[0]
        if lacking is None:
            return _finished(folder, ranks)
        if folder.is_finished:
            _note(ranks, f"resumes the finished run: {lacking}")
    _attempt(ranks, lambda: _check(args, planned, ranks))
    run = _attempt(ranks, lambda: setup.prepare(config, ranks))
    if len(set(steps := ranks.gather(run.data.steps_per_epoch))) > 1:
        raise Refused(f"processes must have equally many steps an epoch, got {', '.join(map(str, steps))}")

    def lock() -> None:
        if ranks.is_main:
            held.enter_context(folder.locked())
            # another process may have been here meanwhile
            _check(args, planned, ranks)

    _attempt(ranks, lock)
    state = _attempt(ranks, lambda: resume.load(folder, config) if args.resume else None)
    if (problem := _different_places(folder, state, ranks)) is not None:
        raise Refused(problem)
    trainer = _attempt(ranks, lambda: Trainer(run, folder, state))
    if args.resume and (note := resume.source(folder)) is not None:
        _note(ranks, note)
    return _run(trainer, state, planned.notes)


def _attempt(ranks: Ranks, action: Callable[[], Result]) -> Result:
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


def _run(trainer: Trainer, state: dict[str, Any] | None, notes: Sequence[str]) -> int:
    """Past the checks: from here on the folder changes."""
    folder, ranks = trainer.folder, trainer.ranks
    try:
        ranks.on_main(lambda: _start(trainer.config, folder, state), CheckpointError)
        _say(ranks, describe(trainer.setup, state))
        for note in (*notes, *trainer.setup.data.notes):
            _say(ranks, f"note: {note}")
        summary = engine.finish(trainer)
    except Stopped as stopped:
        return _fail(str(stopped), SIGNAL_BASE + stopped.number, ranks)
    except (TrainingError, CheckpointError) as error:
        return _fail(str(error), EXIT_FAILED, ranks)
    except torch.OutOfMemoryError as error:
        return _fail(f"the GPU's memory is full, a smaller --batch-size may fit: {first_line(error)}", EXIT_FAILED)
    except OSError as error:
        return _fail(f"'{error.filename or folder.path}': {error.strerror or error}", EXIT_FAILED)
    except RuntimeError as error:
        # torch raises it in the middle of whatever the process does, from a signal's handler
        if "DataLoader worker" not in str(error):
            raise
        return _fail(f"{first_line(error)}; fewer --workers need less memory, --resume continues", EXIT_FAILED)
    if trainer.lost_best is not None:
        return _fail(trainer.lost_best, EXIT_FAILED, ranks)
    if ranks.is_main:
        best, last = summary["accuracy"]["best"], summary["accuracy"]["last"]
        _say(
            ranks,
            f"best top-1 {best['top1']:.2%} after epoch {best['epoch']}, last {last['top1']:.2%}: {folder.path}",
        )
    return 0


def _finished(folder: RunFolder, ranks: Ranks) -> int:
    """Of a run that has come to its end: the report, where that is missing."""
    best = folder.summary["accuracy"]["best"]
    _say(ranks, f"the run in '{folder.path}' is finished: best top-1 {best['top1']:.2%} after epoch {best['epoch']}")
    if ranks.is_main and not resume.has_report(folder):
        try:
            with folder.locked():
                engine.write_report(folder)
        except ValueError as error:
            return _fail(str(error), EXIT_USAGE)
        except OSError as error:
            return _fail(f"the report cannot be made: '{error.filename}': {error.strerror}", EXIT_FAILED)
        _say(ranks, "its report is remade")
    return 0


def _different_places(folder: RunFolder, state: dict[str, Any] | None, ranks: Ranks) -> str | None:
    """What to say where processes would resume from different steps, and wait for each other in vain."""
    places = ranks.gather("no checkpoint" if state is None else f"epoch {state['epoch'] + 1}, step {state['step']}")
    if len(set(places)) == 1:
        return None
    found = ", ".join(f"process {rank} {place}" for rank, place in enumerate(places))
    return f"processes do not find the same checkpoint in '{folder.path}': {found}; all of them must see one folder"


def _start(config: TrainConfig, folder: RunFolder, state: dict[str, Any] | None) -> None:
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


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)


def _note(ranks: Ranks, text: str) -> None:
    """What has been mended, beside what is asked for."""
    if ranks.is_main:
        print(f"semckd train: {text}", file=sys.stderr, flush=True)


def _fail(message: str, code: int, ranks: Ranks | None = None) -> int:
    """Prints one sentence; where all processes fail alike the first one prints it."""
    if ranks is None or ranks.is_main:
        print(f"semckd train: {in_flags(message)}", file=sys.stderr, flush=True)
    return code
