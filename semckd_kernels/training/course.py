"""The course of a run: what of its configuration moves a bit of the parameters, and may not change under it."""

from __future__ import annotations

import json
import zlib

from . import config
from .config import TrainConfig

# what a resumed run may change. The number of epochs is another case, see differing().
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.download",
    "logging.log_every",
    "logging.checkpoint_every",
    "logging.tensorboard",
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


def checksum(run: TrainConfig) -> int:
    """CRC-32 of the course."""
    values = {name: value for name, value in config.flatten(run).items() if name not in MAY_CHANGE}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
