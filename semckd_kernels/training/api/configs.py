"""What somebody gives, by file and by name, as a whole configuration: of a new run, or of one that resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import config, config_file, distributed, optimizers, presets, schedules
from ..config import ModelConfig, RecipeConfig, TrainConfig
from ..config_file import ConfigFile
from ..methods import METHODS
from ..parser import either
from ..run import course

DEFAULT_PRESET = presets.NAMES[0]
PATHS = ("student.weights", "teacher.weights", "data.root")


class Given(NamedTuple):
    """What somebody gives: values by name, over a file.

    Attributes:
        flags: values by dotted name, which go first.
        file: such as that of ``--config``.
        preset: the recipe that both of them change; None unless one of them names it.
    """

    flags: dict[str, Any]
    file: ConfigFile | None = None
    preset: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Of both, by dotted name."""
        return fitted({**(self.file.values if self.file is not None else {}), **self.flags})

    @property
    def whole(self) -> TrainConfig | None:
        """The configuration of the run whose file is given."""
        return self.file.whole if self.file is not None else None

    @property
    def chosen(self) -> dict[str, Any]:
        """Values that somebody has chosen; a run's own file has all the others as well."""
        chosen = self.values if self.whole is None else fitted(self.flags)
        return {name: value for name, value in chosen.items() if value is not None}


def fitted(values: dict[str, Any]) -> dict[str, Any]:
    """Values as people write them, as a configuration holds them."""
    values = dict(values)
    if values.get("method.pair") is not None:
        values["method.pair"] = tuple(values["method.pair"])
    for name in PATHS:
        if values.get(name):
            # a run is looked at from other folders than the one it was started in
            values[name] = str(Path(values[name]).resolve())
    if values.get("hardware.device") == "auto":
        values["hardware.device"] = default_device()
    return values


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_config(
    source: str | Path | Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None
) -> TrainConfig:
    """A whole configuration from what somebody gives; see ``docs/training.md`` for the fields.

    Args:
        source: the file of ``--config``, or what such a file holds: fields in groups, ``{"recipe": {"lr": 0.1}}``, or
            by dotted name, ``{"recipe.lr": 0.1}``, over the recipe of ``"preset"``, which is ``"digits"`` unless given.
        changes: more of the same, which go first.

    Raises:
        ValueError: a field does not exist (the nearest is named); a value is of another type, has no effect, or makes
            no sense together with others.

    Example:
        >>> from semckd_kernels import training
        >>> config = training.make_config({"preset": "cifar100", "student.name": "resnet8x4"}, {"recipe.lr": 0.1})
        >>> config.recipe.lr, config.recipe.epochs
        (0.1, 240)
    """
    changed = config_file.parse(dict(changes or {}), "changes")
    if source is None:
        file = None
    else:
        file = config_file.parse(dict(source)) if isinstance(source, Mapping) else config_file.load(source)
    preset = changed.preset or (file.preset if file is not None else None)
    return new_config(Given(changed.values, file, preset), distributed.world_size())


def new_config(given: Given, world_size: int) -> TrainConfig:
    """The configuration of a new run.

    Raises:
        ValueError: values that make no sense together, or that have no effect; it names them by dotted name.
    """
    values = {"hardware.device": default_device(), **given.values, "hardware.world_size": world_size}
    if not values.get("student.name"):
        raise ValueError("a student is needed: give --student NAME (`semckd info` lists names)")
    if (base := given.whole) is None:
        name, batch_size = given.preset or DEFAULT_PRESET, values.get("recipe.batch_size")
        base = presets.preset(name, values["student.name"], world_size, batch_size)
    if any(key.startswith("teacher.") for key in values):
        values |= _teacher(values)
    made = config.replace(base, **values)
    check_effect(given.chosen, made)
    return made


def _teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Name and layers of a teacher that is given as a run."""
    if values.get("teacher.name"):
        return {}
    # it needs the optional packages, which `semckd info` does without
    from ..run.folder import RunFolder

    run = RunFolder(values.get("teacher.weights") or "no run")
    if not (values.get("teacher.weights") and run.is_run):
        raise ValueError("a teacher needs a name: give --teacher NAME, or a run's folder as --teacher-weights")
    teacher: ModelConfig = run.config.student
    return {"teacher.name": teacher.name, "teacher.layers": values.get("teacher.layers", teacher.layers)}


def resumed_config(given: Given, stored: TrainConfig, world_size: int) -> TrainConfig:
    """The configuration of a resumed run: the stored one with what is given, see :func:`changes_of_course`.

    Raises:
        ValueError: as :func:`new_config` does.
    """
    if given.preset is not None:
        # a preset is a whole configuration: all of it counts as given
        kept = {"student.name": stored.student.name, "hardware.device": stored.hardware.device}
        kept = {name: value for name, value in kept.items() if name not in given.values}
        return new_config(given._replace(flags={**kept, **given.flags}), world_size)
    made = config.replace(stored, **{**given.values, "hardware.world_size": world_size})
    check_effect(given.chosen, made)
    return made


def changes_of_course(stored: TrainConfig, wanted: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Values by which a resumed run would leave its course: as stored, and as wanted."""
    before, after = config.flatten(stored), config.flatten(wanted)
    return {name: (before.get(name), after.get(name)) for name in course.differing(stored, wanted)}


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
