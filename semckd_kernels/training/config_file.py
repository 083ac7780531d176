"""The file of ``--config``: fields of a configuration, in groups, as YAML or JSON; a run's ``config.json`` is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from . import config, presets, values
from .config import TrainConfig
from .flags import by_name
from .methods import METHODS


class ConfigFile(NamedTuple):
    """What a file sets.

    Attributes:
        name: of the file, in messages.
        values: by dotted name.
        preset: the recipe that it changes; None where it names none.
        whole: the configuration, where the file is that of a run and has all of it.
    """

    name: str
    values: dict[str, Any]
    preset: str | None = None
    whole: TrainConfig | None = None


def load(path: str | Path) -> ConfigFile:
    """Reads a file.

    Raises:
        ValueError: it cannot be read, or as :func:`parse` does.
    """
    return parse(values.read(Path(path)), f"'{path}'")


def parse(groups: dict[str, Any], name: str = "the configuration") -> ConfigFile:
    """What a file holds: with ``format`` it is a run's, and must have every field; without, it may name a ``preset``.

    Args:
        groups: fields in groups, or by dotted name.
        name: of the file, in messages.

    Raises:
        ValueError: a field does not exist (the nearest is named), or a value is of another type.
    """
    if "format" in groups:
        try:
            whole = config.from_dict(groups)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is not the configuration of a run: {error}") from error
        return ConfigFile(name, config.flatten(whole), whole=whole)
    groups = dict(groups)
    preset = groups.pop("preset", None)
    if preset is not None and preset not in presets.NAMES:
        raise ValueError(f"{name}: preset must be one of {', '.join(presets.NAMES)}, got {preset!r}")
    options = dict.fromkeys(option for method in METHODS.values() for option in method.options)
    also = {"preset": "preset"}
    for dotted, flag in by_name().items():
        also |= {text.lstrip("-").replace("-", "_"): dotted for text in (flag.name, *flag.also)}
    try:
        found = values.typed(config.fields(options), groups, "`{}`", also)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if "hardware.world_size" in found:
        raise ValueError(f"{name}: `hardware.world_size` is the number of processes: leave it out")
    return ConfigFile(name, found, preset)
