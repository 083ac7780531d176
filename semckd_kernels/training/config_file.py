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
        path: of the file.
        values: by dotted name.
        preset: the recipe that it changes; None where it names none.
        whole: the configuration, where the file is that of a run and has all of it.
    """

    path: Path
    values: dict[str, Any]
    preset: str | None = None
    whole: TrainConfig | None = None


def load(path: str | Path) -> ConfigFile:
    """Reads a file. With ``format`` it is a run's, and must have every field; without, it may name a ``preset``.

    Raises:
        ValueError: it cannot be read, a field does not exist (the nearest is named), or a value is of another type.
    """
    path = Path(path)
    groups = values.read(path)
    if "format" in groups:
        try:
            whole = config.from_dict(groups)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' is not the configuration of a run: {error}") from error
        return ConfigFile(path, config.flatten(whole), whole=whole)
    preset = groups.pop("preset", None)
    if preset is not None and preset not in presets.NAMES:
        raise ValueError(f"'{path}': preset must be one of {', '.join(presets.NAMES)}, got {preset!r}")
    options = dict.fromkeys(option for method in METHODS.values() for option in method.options)
    also = {"preset": "preset"}
    for dotted, flag in by_name().items():
        also |= {name.lstrip("-").replace("-", "_"): dotted for name in (flag.name, *flag.also)}
    try:
        found = values.typed(config.fields(options), groups, "`{}`", also)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    if "hardware.world_size" in found:
        raise ValueError(f"'{path}': `hardware.world_size` is the number of processes: leave it out")
    return ConfigFile(path, found, preset)
