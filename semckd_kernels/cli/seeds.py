"""``semckd train --seeds``: one configuration from several seeds, each an ordinary run in a folder of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..training import config
from ..training.api.configs import Given
from ..training.config import RecipeConfig, TrainConfig
from ..training.distributed import Ranks
from ..training.errors import EXIT_FAILED
from ..training.run import resume
from ..training.run.folder import RunFolder
from . import arguments


class Planned(NamedTuple):
    """A run that is to be trained, or to be resumed."""

    folder: RunFolder
    config: TrainConfig
    # what its user should know
    notes: list[str]


def plan(given: Given, out: Path, world_size: int, resumes: bool, seeds: int | None) -> list[Planned]:
    """The runs of a command line: one in ``out``, or one a seed in ``out/seed-N``, from the given seed on.

    Args:
        given: by flags and file.
        out: the folder of ``--out``.
        world_size: processes.
        resumes: whether runs that are there are continued.
        seeds: how many; None is one run without a folder of its own.

    Raises:
        ValueError: values that make no sense, or ``out`` is a run itself where it is to hold several.
        OSError: a file cannot be read.
    """
    if seeds is None:
        return [_planned(given, RunFolder(out), world_size, resumes)]
    if RunFolder(out).is_run:
        raise ValueError(f"'{out}' is a run itself, and --seeds makes a folder a seed in it: give another --out")
    first = given.values.get("recipe.seed", RecipeConfig().seed)
    folders = {first + n: RunFolder(out / f"seed-{first + n}") for n in range(seeds)}
    stored = next((found for folder in folders.values() if resumes and (found := resume.stored_config(folder))), None)
    return [
        _planned(given._replace(flags={**given.flags, "recipe.seed": seed}), folder, world_size, resumes, stored)
        for seed, folder in folders.items()
    ]


def _planned(
    given: Given, folder: RunFolder, world_size: int, resumes: bool, other: TrainConfig | None = None
) -> Planned:
    """A run; one that has not begun is made as ``other`` is, the run of another seed."""
    stored = resume.stored_config(folder) if resumes else None
    if stored is None and other is not None:
        stored = config.replace(other, **{"recipe.seed": given.flags["recipe.seed"]})
    if stored is not None:
        made = arguments.resumed_config(given, stored, world_size, folder.path)
    else:
        made = arguments.make_config(given, world_size)
    return Planned(folder, made, arguments.notes(given, made, resumes))


def train(planned: Sequence[Planned], ranks: Ranks, one: Callable[[Planned], int], say: Callable[[str], None]) -> int:
    """All runs one after the other; returns the exit code.

    A run that fails does not keep the others from being trained, where a single process trains: on several, the others
    may be waiting for the one that has failed.

    Args:
        planned: of :func:`plan`.
        ranks: the processes.
        one: trains or resumes a run and returns its exit code.
        say: gets lines of text.
    """
    failed = []
    for n, run in enumerate(planned):
        say(f"\nseed {run.config.recipe.seed}, run {n + 1} of {len(planned)}")
        _start_afresh(run.config)
        code = one(run)
        if code == EXIT_FAILED and ranks.world_size == 1:
            failed.append(run.config.recipe.seed)
        elif code:
            return code
    done = [run.folder.path for run in planned if run.folder.is_finished]
    if ranks.is_main and done:
        say(f"\n{line(done)}")
    if failed:
        say(f"not finished: seed {', '.join(map(str, failed))}")
    return EXIT_FAILED if failed else 0


def line(paths: Sequence[Path]) -> str:
    """The runs as a row of ``semckd compare``."""
    from ..analysis.comparison import tables
    from ..analysis.comparison.comparison import compare

    found = compare(paths)
    return f"{tables.text(found.rows)}\n\n`semckd compare {paths[0].parent} RUN...` compares it with others"


def _start_afresh(run: TrainConfig) -> None:
    """Leaves nothing of the run before in this process: each is the run that it would be alone."""
    gc.collect()
    if run.hardware.compile:
        # compiled frames of earlier networks count against a limit, behind which nothing is compiled
        torch.compiler.reset()
    if run.hardware.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.hardware.device)
