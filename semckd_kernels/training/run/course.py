"""The course of a run: what of its configuration moves a bit of the parameters, and may not change under it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from .. import config
from ..config import TrainConfig

# what a resumed run may change. The number of epochs is another case, see differing().
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.download",
    "data.skip_broken",
    "logging.log_every",
    "logging.checkpoint_every",
    "logging.tensorboard",
    "logging.tracker",
)


def differing(stored: TrainConfig, wanted: TrainConfig) -> list[str]:
    """Dotted names of the values by which a run would leave its course.

    ``recipe.epochs`` may be raised where learning rates do not depend on it: schedule ``step`` without warm-up.
    """
    before, after = config.flatten(stored), config.flatten(wanted)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name) and name not in MAY_CHANGE]
    recipe = wanted.recipe
    if recipe.schedule == "step" and not recipe.warm_up and recipe.epochs > stored.recipe.epochs:
        names = [name for name in names if name != "recipe.epochs"]
    return names


def describe(stored: TrainConfig, wanted: TrainConfig, names: list[str]) -> str:
    """``"recipe.lr 0.05 there, 0.1 here; ..."``."""
    before, after = config.flatten(stored), config.flatten(wanted)
    return "; ".join(f"{name} {before.get(name)} there, {after.get(name)} here" for name in names)


def checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of the course, out of what ``config.json`` holds: of this version or another."""
    kept = {name: value for name, value in _dotted(values) if name not in MAY_CHANGE}
    return zlib.crc32(json.dumps(kept, sort_keys=True).encode())


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
