"""``semckd train``: checks everything, then starts a run or goes on with one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from . import arguments, checkpoint, distributed, engine, setup
from .checkpoint import CheckpointError
from .config import TrainConfig
from .distributed import Ranks
from .errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE, first_line
from .flags import in_flags
from .records import TrainingError
from .run_folder import RunFolder
from .setup import Setup
from .signals import Stopped


def train(args: argparse.Namespace) -> int:
    """Returns the exit code; see ``cli``."""
    world_size, folder = distributed.world_size(), RunFolder(args.out)
    try:
        config = _config(args, folder, world_size)
        ranks = distributed.connect(config.hardware.device)
    except (ValueError, OSError, RuntimeError) as error:
        return _fail(str(error), EXIT_USAGE)
    try:
        return _train(args, config, folder, ranks)
    finally:
        distributed.disconnect()


def _config(args: argparse.Namespace, folder: RunFolder, world_size: int) -> TrainConfig:
    if args.resume and args.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite replaces it: give one of them")
    if args.resume and folder.is_run:
        return arguments.resumed_config(args, folder.config, world_size)
    return arguments.make_config(args, world_size)


def print_config(args: argparse.Namespace) -> int:
    """Prints the configuration that a run would have, as ``config.json`` holds it; returns the exit code."""
    if args.resume and args.out is None:
        return _fail("--resume continues the run in a folder: give --out DIR", EXIT_USAGE)
    try:
        folder = RunFolder(args.out or "a new run")
        config = _config(args, folder, distributed.world_size())
    except (ValueError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    for note in arguments.notes(args, config):
        print(f"note: {note}", file=sys.stderr)
    print(config.to_json(), end="")
    return 0


def _train(args: argparse.Namespace, config: TrainConfig, folder: RunFolder, ranks: Ranks) -> int:
    if args.resume and folder.is_finished and config.recipe.epochs == folder.config.recipe.epochs:
        best = folder.summary["accuracy"]["best"]
        _say(
            ranks, f"the run in '{folder.path}' is finished: best top-1 {best['top1']:.2%} after epoch {best['epoch']}"
        )
        return 0
    run, state, problem = None, None, None
    try:
        run = setup.prepare(config, ranks)
        if ranks.is_main:
            folder.check(args.overwrite, args.resume)
        if args.resume and folder.last.exists():
            state = checkpoint.load(folder.last)
    except (ValueError, CheckpointError, ImportError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"'{error.filename}': {error.strerror}" if error.filename and error.strerror else str(error)
    # one process must not wait for others that have left
    problem = ranks.agree(problem) or _different_places(folder, state, ranks)
    if problem is not None or run is None:
        return _fail(problem or "", EXIT_USAGE, ranks)
    try:
        ranks.on_main(lambda: _start(config, folder, state), CheckpointError)
        _say(ranks, describe(run, state))
        for note in arguments.notes(args, config):
            _say(ranks, f"note: {note}")
        summary = engine.train(run, folder, state)
    except Stopped as stopped:
        return _fail(str(stopped), SIGNAL_BASE + stopped.number, ranks)
    except (TrainingError, CheckpointError) as error:
        return _fail(str(error), EXIT_FAILED, ranks)
    except torch.OutOfMemoryError as error:
        return _fail(f"the GPU's memory is full, a smaller --batch-size may fit: {first_line(error)}", EXIT_FAILED)
    except OSError as error:
        return _fail(f"'{error.filename or folder.path}': {error.strerror or error}", EXIT_FAILED)
    if ranks.is_main:
        best, last = summary["accuracy"]["best"], summary["accuracy"]["last"]
        _say(
            ranks,
            f"best top-1 {best['top1']:.2%} after epoch {best['epoch']}, last {last['top1']:.2%}: {folder.path}",
        )
    return 0


def _different_places(folder: RunFolder, state: dict[str, Any] | None, ranks: Ranks) -> str | None:
    """What to say where processes would go on from different steps, and wait for each other in vain."""
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
            folder.write_json("config.json", config.to_dict())
    except OSError as error:
        raise CheckpointError(f"cannot write to '{folder.path}': {error.strerror or error}") from error


def describe(run: Setup, state: dict[str, Any] | None) -> str:
    """What is going to happen, in a few lines."""
    config, data = run.config, run.data
    recipe, hardware = config.recipe, config.hardware
    teacher = f" from {config.teacher.name}" if config.teacher is not None else ""
    processes = f" x {hardware.world_size} processes" if hardware.world_size > 1 else ""
    steps = f" x {recipe.accumulate} steps" if recipe.accumulate > 1 else ""
    total = f" = {config.global_batch_size}" if processes or steps else ""
    lines = [
        f"{config.student.name}{teacher} by {config.method.name} on {data.name}: {data.train_count} training and "
        f"{data.test_count} test images, {data.classes} classes",
        f"{recipe.epochs} epochs of {data.steps_per_epoch} steps, batch {recipe.batch_size}{processes}{steps}{total}, "
        f"{hardware.precision} on {run.device}",
    ]
    if state is not None:
        lines.append(f"goes on in epoch {state['epoch'] + 1}, after step {state['step']}")
    return "\n".join(lines)


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)


def _fail(message: str, code: int, ranks: Ranks | None = None) -> int:
    """Prints one sentence; where all processes fail alike the first one prints it."""
    if ranks is None or ranks.is_main:
        print(f"semckd train: {in_flags(message)}", file=sys.stderr, flush=True)
    return code
