"""From the command line of ``semckd train`` to a configuration.

A preset, then the file of ``--config``, then flags; or a stored run, then file and flags.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training import config, config_file, named_code, presets
from ..training.api import configs
from ..training.api.configs import DEFAULT_PRESET, Given
from ..training.config import TrainConfig
from ..training.data import IN_MEMORY
from ..training.flags import OTHER_NAMES, by_name, described, flag_name, groups, in_flags, written
from ..training.parser import Parser, folder_path, whole


def add_train_arguments(parser: Parser) -> None:
    absent = argparse.SUPPRESS
    text = f"start from this recipe, which flags change (default: {DEFAULT_PRESET}; `semckd info PRESET` shows one)"
    parser.add_argument("--preset", choices=presets.NAMES, default=absent, help=text)
    text = "take fields from this YAML or JSON file, such as a run's config.json; flags override it (default: none)"
    parser.add_argument("--config", metavar="FILE", help=text)
    for title, flags in groups().items():
        group = parser.add_argument_group(title)
        for flag in flags:
            # absent unless given: what is not given is the preset's, or the stored run's
            group.add_argument(flag.name, dest=flag.sets, help=described(flag), default=absent, **flag.options)
            parser.also |= dict.fromkeys(flag.also, flag.name)
    parser.also |= OTHER_NAMES
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", type=folder_path, metavar="DIR", help="write the run into this folder; required for a run"
    )
    resume = "continue from the last checkpoint, bit for bit; start a run where there is none"
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    text = "train this many runs, from the seed of --seed on, in folders DIR/seed-N (default: one run, in DIR itself)"
    group.add_argument("--seeds", type=whole(1, 10_000), metavar="INT", help=text)
    named_code.add_flag(group)
    show = "print the resulting configuration as JSON, as config.json will hold it, and train nothing"
    group.add_argument("--print-config", action="store_true", help=show)


def given(args: argparse.Namespace) -> Given:
    """What a command line gives.

    Raises:
        ValueError: of the file, as ``config_file.load`` does.
    """
    flags, preset = {name: value for name, value in vars(args).items() if "." in name}, getattr(args, "preset", None)
    if args.config is None:
        return Given(flags, None, preset)
    file = config_file.load(args.config)
    if preset is not None and file.whole is not None:
        raise ValueError(f"--preset has no effect with --config {file.name}, which has every field: leave out one")
    return Given(flags, file, preset or file.preset)


def make_config(given: Given, world_size: int) -> TrainConfig:
    """``api.configs.new_config``, whose errors name flags, or fields of the file."""
    try:
        return configs.new_config(given, world_size)
    except ValueError as error:
        raise ValueError(_named(given, str(error))) from error


def resumed_config(given: Given, stored: TrainConfig, world_size: int, out: Path) -> TrainConfig:
    """The configuration of a resumed run: the stored one, with what may change.

    Raises:
        ValueError: a value differs from the stored run in what would change its course.
    """
    try:
        wanted = configs.resumed_config(given, stored, world_size)
    except ValueError as error:
        raise ValueError(_named(given, str(error))) from error
    if differing := configs.changes_of_course(stored, wanted):
        changes = "; ".join(
            f"{flag_name(name)} was {written(before)} and is now {written(after)}"
            for name, (before, after) in differing.items()
        )
        raise ValueError(f"the run in '{out}' cannot be resumed with another configuration: {changes}")
    return wanted


def _named(given: Given, message: str) -> str:
    """A message with its fields named as the flags that set them, or as those of the file."""
    file = given.file
    if file is None:
        return in_flags(message)
    return in_flags(message, {name: f"`{name}` of {file.name}" for name in file.values if name not in given.flags})


def notes(given: Given, run: TrainConfig, resume: bool = False) -> list[str]:
    """What a user should know of a configuration that is right by itself but may not be what was meant."""
    values, found = given.chosen, []
    name, file = given.preset, given.file
    whole = given.whole
    if whole is None and (not resume or name is not None):
        recipe = presets.preset(
            name or DEFAULT_PRESET, run.student.name, run.hardware.world_size, run.recipe.batch_size
        )
        if recipe.data.name != run.data.name:
            found.append(_another_recipe(name, run))
        late = [epoch for epoch in run.recipe.milestones if epoch >= run.recipe.epochs]
        if late and "recipe.milestones" not in values:
            found.append(
                f"{written(run.recipe.epochs)} epochs end before milestone {late[0]} of preset {name}: give "
                "--milestones EPOCH,... to lower the learning rate earlier"
            )
    if file is not None and whole is not None and whole.hardware.world_size != run.hardware.world_size:
        found.append(
            f"{file.name} is of {whole.hardware.world_size} processes and an update of {whole.global_batch_size} "
            f"images: here are {run.hardware.world_size} and {run.global_batch_size}"
        )
    if values.get("data.workers") and run.data.name in IN_MEMORY:
        found.append(f"--workers has no effect with data set '{run.data.name}', which is held in memory")
    if values.get("data.root") and run.data.name == "digits":
        found.append("--data-root has no effect with data set 'digits', which comes with scikit-learn")
    return found


def _another_recipe(preset: str | None, run: TrainConfig) -> str:
    recipe = run.recipe
    used = f"preset {preset}" if preset else f"preset {DEFAULT_PRESET}, the default"
    text = (
        f"data set '{run.data.name}' is trained by the recipe of {used}: {recipe.epochs} epochs, batch size "
        f"{recipe.batch_size}, learning rate {recipe.lr:g}, schedule {recipe.schedule}, beta {run.method.beta:g}"
    )
    return text + (f"; --preset {run.data.name} is the paper's" if run.data.name in presets.NAMES[1:] else "")


def preset_table(name: str) -> str:
    """What a preset sets, one flag a line, in words of the command line."""
    values = config.flatten(presets.preset(name, "NAME"))
    shown = {
        flag.name: written(values[dotted], flag.unset)
        for dotted, flag in by_name().items()
        if dotted in values and not dotted.startswith(("student.", "teacher.", "hardware.device", "method.name"))
    }
    if name == "cifar100":
        small = presets.preset(name, presets.SMALL_LR_NETWORKS[0]).recipe.lr
        shown["--lr"] += f" ({small:g} for MobileNetV2 and the ShuffleNets)"
    elif name == "imagenet":
        shown["--batch-size"] += " over all processes"
    return "\n".join(f"{flag:<20}{value}" for flag, value in shown.items())
