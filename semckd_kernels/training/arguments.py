"""From the flags of ``semckd train`` to a configuration: a preset, then flags; or a stored run, then flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from . import config, course, named_code, presets
from .config import ModelConfig, TrainConfig
from .flags import FLAGS, folder_path

PATHS = ("student.weights", "teacher.weights", "data.root")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS
    parser.add_argument(
        "--preset", choices=presets.NAMES, default=absent, help="recipe to start from; digits by default"
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            # absent unless given: what is not given is the preset's, or the stored run's
            group.add_argument(flag.name, dest=flag.sets, help=flag.help, default=absent, **flag.options)
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=folder_path, required=True, help="folder of the run")
    resume = "go on from the last checkpoint, bit for bit; without a run there, start one"
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    named_code.add_flag(group)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the flags that were given, by dotted name."""
    values = {name: value for name, value in vars(args).items() if "." in name}
    if "method.pair" in values:
        values["method.pair"] = tuple(values["method.pair"])
    for name in PATHS:
        if values.get(name):
            # a run is looked at from other folders than the one it was started in
            values[name] = str(Path(values[name]).resolve())
    if values.get("hardware.device") == "auto":
        values["hardware.device"] = _default_device()
    return values


def make_config(args: argparse.Namespace, world_size: int) -> TrainConfig:
    """The configuration of a new run.

    Raises:
        ValueError: flags that make no sense together.
    """
    values = {"hardware.device": _default_device(), **given(args), "hardware.world_size": world_size}
    if not values.get("student.name"):
        raise ValueError("a student is needed: give --student NAME (`semckd info` lists names)")
    name, batch_size = getattr(args, "preset", "digits"), values.get("recipe.batch_size")
    base = presets.preset(name, values["student.name"], world_size, batch_size)
    if any(key.startswith("teacher.") for key in values):
        values |= _teacher(values)
    return config.replace(base, **values)


def _teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Name and layers of a teacher that is given as a run."""
    if values.get("teacher.name"):
        return {}
    # it needs the optional packages, which `semckd info` does without
    from .run_folder import RunFolder

    run = RunFolder(values.get("teacher.weights", ""))
    if not (values.get("teacher.weights") and run.is_run):
        raise ValueError("a teacher needs a name: give --teacher NAME, or a run's folder as --teacher-weights")
    teacher: ModelConfig = run.config.student
    return {"teacher.name": teacher.name, "teacher.layers": values.get("teacher.layers", teacher.layers)}


def resumed_config(args: argparse.Namespace, stored: TrainConfig, world_size: int) -> TrainConfig:
    """The configuration of a run that goes on: the stored one, with what may change.

    Raises:
        ValueError: a flag differs from the stored run in what would change its course.
    """
    kept = {"student.name": stored.student.name, "hardware.device": stored.hardware.device}
    if hasattr(args, "preset"):
        # a preset is a whole configuration: all of it counts as given
        wanted = make_config(argparse.Namespace(**{**kept, **vars(args)}), world_size)
    else:
        wanted = config.replace(stored, **given(args), **{"hardware.world_size": world_size})
    before, after = config.flatten(stored), config.flatten(wanted)
    if names := course.differing(stored, wanted):
        changes = "; ".join(f"{name} was {before.get(name)} and is now {after.get(name)}" for name in names)
        raise ValueError(f"the run in '{args.out}' cannot go on with another configuration: {changes}")
    return wanted


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
