"""From the command line of ``semckd train`` to a configuration.

A preset, then the file of ``--config``, then flags; or a stored run, then file and flags.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..training import config, config_file, named_code, optimizers, presets, schedules
from ..training.config import ModelConfig, RecipeConfig, TrainConfig
from ..training.config_file import ConfigFile
from ..training.data import IN_MEMORY
from ..training.flags import OTHER_NAMES, by_name, described, flag_name, groups, in_flags, written
from ..training.methods import METHODS
from ..training.parser import Parser, either, folder_path, whole
from ..training.run import course

DEFAULT_PRESET = presets.NAMES[0]
PATHS = ("student.weights", "teacher.weights", "data.root")


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


class Given(NamedTuple):
    """What a command line sets: by flags, and by the file that it names.

    Attributes:
        flags: values by dotted name.
        file: the file of ``--config``.
        preset: the recipe that both of them change; None unless one of them names it.
    """

    flags: dict[str, Any]
    file: ConfigFile | None = None
    preset: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Of file and flags, by dotted name."""
        return {**(self.file.values if self.file is not None else {}), **self.flags}

    @property
    def chosen(self) -> dict[str, Any]:
        """Values that somebody has chosen; a run's own file has all the others as well."""
        chosen = self.flags if self.file is not None and self.file.whole is not None else self.values
        return {name: value for name, value in chosen.items() if value is not None}

    def names(self, message: str) -> str:
        """A message with its fields named as the flags that set them, or as those of the file."""
        file = self.file
        fields = [name for name in file.values if name not in self.flags] if file is not None else []
        return in_flags(message, {name: f"`{name}` of '{file.path}'" for name in fields} if file is not None else {})


def given(args: argparse.Namespace) -> Given:
    """What a command line sets.

    Raises:
        ValueError: of the file, as ``config_file.load`` does.
    """
    flags = _fitted({name: value for name, value in vars(args).items() if "." in name})
    preset = getattr(args, "preset", None)
    if args.config is None:
        return Given(flags, None, preset)
    file = config_file.load(args.config)
    if preset is not None and file.whole is not None:
        raise ValueError(f"--preset has no effect with --config '{file.path}', which has every field: leave out one")
    return Given(flags, file._replace(values=_fitted(file.values)), preset or file.preset)


def _fitted(values: dict[str, Any]) -> dict[str, Any]:
    """Values as people write them, as a configuration holds them."""
    values = dict(values)
    if values.get("method.pair") is not None:
        values["method.pair"] = tuple(values["method.pair"])
    for name in PATHS:
        if values.get(name):
            # a run is looked at from other folders than the one it was started in
            values[name] = str(Path(values[name]).resolve())
    if values.get("hardware.device") == "auto":
        values["hardware.device"] = _default_device()
    return values


def make_config(given: Given, world_size: int) -> TrainConfig:
    """The configuration of a new run.

    Raises:
        ValueError: values that make no sense together, or that have no effect.
    """
    values = {"hardware.device": _default_device(), **given.values, "hardware.world_size": world_size}
    if not values.get("student.name"):
        raise ValueError("a student is needed: give --student NAME (`semckd info` lists names)")
    if given.file is not None and given.file.whole is not None:
        base = given.file.whole
    else:
        base = presets.preset(
            given.preset or DEFAULT_PRESET, values["student.name"], world_size, values.get("recipe.batch_size")
        )
    if any(key.startswith("teacher.") for key in values):
        values |= _teacher(values)
    return _replaced(base, values, given)


def _replaced(base: TrainConfig, values: dict[str, Any], given: Given) -> TrainConfig:
    """``config.replace`` and ``check_effect``, whose errors name flags, or fields of the file."""
    try:
        made = config.replace(base, **values)
        check_effect(given.chosen, made)
    except ValueError as error:
        raise ValueError(given.names(str(error))) from error
    return made


def _teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Name and layers of a teacher that is given as a run."""
    if values.get("teacher.name"):
        return {}
    # it needs the optional packages, which `semckd info` does without
    from ..training.run.folder import RunFolder

    run = RunFolder(values.get("teacher.weights", ""))
    if not (values.get("teacher.weights") and run.is_run):
        raise ValueError("a teacher needs a name: give --teacher NAME, or a run's folder as --teacher-weights")
    teacher: ModelConfig = run.config.student
    return {"teacher.name": teacher.name, "teacher.layers": values.get("teacher.layers", teacher.layers)}


def resumed_config(given: Given, stored: TrainConfig, world_size: int, out: Path) -> TrainConfig:
    """The configuration of a resumed run: the stored one, with what may change.

    Raises:
        ValueError: a value differs from the stored run in what would change its course.
    """
    if given.preset is not None:
        # a preset is a whole configuration: all of it counts as given
        kept = {"student.name": stored.student.name, "hardware.device": stored.hardware.device}
        kept = {name: value for name, value in kept.items() if name not in given.values}
        wanted = make_config(given._replace(flags={**kept, **given.flags}), world_size)
    else:
        wanted = _replaced(stored, {**given.values, "hardware.world_size": world_size}, given)
    before, after = config.flatten(stored), config.flatten(wanted)
    if names := course.differing(stored, wanted):
        changes = "; ".join(
            f"{flag_name(name)} was {written(before.get(name))} and is now {written(after.get(name))}" for name in names
        )
        raise ValueError(f"the run in '{out}' cannot be resumed with another configuration: {changes}")
    return wanted


def check_effect(values: dict[str, Any], run: TrainConfig) -> None:
    """Refuses values that the rest of the configuration ignores, so that nobody compares runs by them.

    Args:
        values: that somebody has chosen, by dotted name.
        run: the configuration that they made.

    Raises:
        ValueError: names the value, why it has no effect, and what to do.
    """
    method, recipe = run.method, run.recipe
    for name in values:
        field = name.removeprefix("method.")
        if name == "method.name" or not name.startswith("method.") or field in method.record.fields:
            continue
        users = [other for other, record in METHODS.items() if field in record.fields]
        raise _no_effect(name, f"with method '{method.name}'", f"give --method {either(users)}")
    for field, term in method.idle.items():
        if f"method.{field}" in values:
            raise _no_effect(f"method.{field}", f"with method.{term.weight_name} 0", f"give {term.label} a weight")
    _check_effect_in_recipe(values, recipe)
    late = [epoch for epoch in values.get("recipe.milestones", ()) if epoch >= recipe.epochs]
    if late:
        raise ValueError(f"recipe.milestones must be below the number of epochs, {recipe.epochs}, got {late[0]}")
    for side, weights in (("student", values.get("student.weights")), ("teacher", values.get("teacher.weights"))):
        if weights and values.get(f"{side}.pretrained"):
            raise _no_effect(f"{side}.pretrained", f"with --{side}-weights", "give one of them")
    if values.get("hardware.prepare_teacher") and (not method.needs_teacher or method.record.keeps_teacher):
        raise _no_effect("hardware.prepare_teacher", f"with method '{method.name}'", "give --method kd")
    if values.get("data.augment") and run.data.name == "digits":
        raise _no_effect("data.augment", "with data set 'digits', which has no augmentation", "give --data cifar100")


def _check_effect_in_recipe(values: dict[str, Any], recipe: RecipeConfig) -> None:
    """That of :func:`check_effect` for what an optimizer or a schedule may not have."""
    given = {name.removeprefix("recipe.") for name in values if name.startswith("recipe.")}
    for field, users in (("momentum", "sgd"), ("betas", "adamw"), ("eps", "adamw")):
        if field in given and field not in optimizers.fields(recipe.optimizer):
            raise _no_effect(f"recipe.{field}", f"with optimizer '{recipe.optimizer}'", f"give --optimizer {users}")
    used = schedules.fields(recipe.schedule)
    for field, users in (("milestones", "step"), ("gamma", "step"), ("min_lr", "cosine")):
        if field in given and field not in used:
            raise _no_effect(f"recipe.{field}", f"with schedule '{recipe.schedule}'", f"give --schedule {users}")
    if "gamma" in given and "milestones" in used and not recipe.milestones:
        raise _no_effect("recipe.gamma", "without milestones", "give --milestones EPOCH,...")
    if "decay_all" in given and not recipe.weight_decay:
        raise _no_effect("recipe.decay_all", "with recipe.weight_decay 0", "give --weight-decay FLOAT")


def _no_effect(name: str, why: str, instead: str) -> ValueError:
    return ValueError(f"{name} has no effect {why}: leave it out, or {instead}")


def notes(given: Given, run: TrainConfig, resume: bool = False) -> list[str]:
    """What a user should know of a configuration that is right by itself but may not be what was meant."""
    values, found = given.chosen, []
    name, file = given.preset, given.file
    whole = file.whole if file is not None else None
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
            f"'{file.path}' is of {whole.hardware.world_size} processes and an update of {whole.global_batch_size} "
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


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
