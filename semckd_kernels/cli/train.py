"""``semckd train``: checks everything, then starts a run or resumes one."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from ..training import distributed
from ..training.api import start
from ..training.api.start import Refused, Start
from ..training.distributed import Ranks
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE, first_line
from ..training.flags import in_flags
from ..training.loop.records import TrainingError
from ..training.loop.signals import Stopped
from ..training.run.checkpoint import CheckpointError
from . import arguments, seeds
from .seeds import Planned


def train(args: argparse.Namespace) -> int:
    """Returns the exit code; see ``cli``."""
    with ExitStack() as held:
        try:
            planned = _plan(args, args.out)
            ranks = held.enter_context(distributed.joined(planned[0].config.hardware.device))
        except (ValueError, OSError, RuntimeError) as error:
            return _fail(str(error), EXIT_USAGE)

        def made(run: Planned) -> Start:
            return Start(run.config, run.folder, ranks, args.resume, args.overwrite, notes=run.notes)

        if args.seeds is None:
            return _one(made(planned[0]))
        try:
            # before the first of them is trained
            for run in planned:
                start.attempt(ranks, made(run).check)
        except Refused as refused:
            return _fail(str(refused), EXIT_USAGE, ranks)
        return seeds.train(planned, ranks, lambda run: _one(made(run)), made(planned[0]).say)


def _plan(args: argparse.Namespace, out: Path) -> list[Planned]:
    if args.resume and args.overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it: give one of them")
    return seeds.plan(arguments.given(args), out, distributed.world_size(), args.resume, args.seeds)


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


def _one(run: Start) -> int:
    """Trains a run or resumes it; returns the exit code."""
    last = run.folder.last
    try:
        with distributed.together(run.ranks):
            return _code(run)
    except distributed.LostPeer as lost:
        where = f"continues from '{last}'" if last.exists() else "starts over, there is no checkpoint yet"
        return _fail(f"{lost}: --resume {where}", EXIT_FAILED)


def _code(run: Start) -> int:
    """As :func:`_one`, but for a process that is lost."""
    folder, ranks = run.folder, run.ranks
    try:
        start.run(run)
    except Refused as refused:
        return _fail(str(refused), EXIT_USAGE, ranks)
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
    return 0


def _fail(message: str, code: int, ranks: Ranks | None = None) -> int:
    """Prints one sentence; where all processes fail alike the first one prints it."""
    if ranks is None or ranks.is_main:
        print(f"semckd train: {in_flags(message)}", file=sys.stderr, flush=True)
    return code
