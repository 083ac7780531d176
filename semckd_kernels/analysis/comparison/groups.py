"""Runs that differ by the seed alone are one row of the table; what sets rows apart is in their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...training import config as configuration
from ...training.config import TrainConfig
from ...training.flags import written
from ...training.methods import METHODS
from ...training.report import recipe_differences
from ...training.run import course
from .runs import LeftOut, Run

# moves no accuracy, or is what the runs of a row differ by
NOT_COMPARED = ("recipe.seed", *course.MAY_CHANGE)
# set rows apart from what their method's name promises, even where all rows have them
ALWAYS_SAID = ("method.pair", "method.kd_standardize")
UNSET = "as usual"


@dataclass(frozen=True)
class Group:
    """A row: its name, and its runs in the order of their seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> TrainConfig:
        """That of its first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def top1(self, epoch: str) -> dict[int, float]:
        """Accuracies by seed, see :meth:`.runs.Run.top1`."""
        return {run.seed: run.top1(epoch) for run in self.runs}


def group(runs: Sequence[Run]) -> tuple[list[Group], list[LeftOut]]:
    """Rows in the order of the methods, and runs that repeat another one's configuration and seed."""
    rows: dict[tuple[Any, ...], dict[int, Run]] = {}
    others = []
    for run in runs:
        row = rows.setdefault(tuple(sorted(_compared(run.config).items(), key=str)), {})
        if (first := row.setdefault(run.seed, run)) is not run:
            others.append(LeftOut(run.folder.path, f"configuration and seed of '{first.folder.path}'"))
    found = [tuple(row[seed] for seed in sorted(row)) for row in rows.values()]
    values = [_compared(row[0].config) for row in found]
    differing = [name for name in dict.fromkeys(name for row in values for name in row) if _differs(name, values)]
    groups = [Group(_label(row[0].config, differing), row) for row in found]
    return sorted(groups, key=_place), others


def _compared(config: TrainConfig) -> dict[str, Any]:
    """The values by dotted name that make a row."""
    return {
        name: value
        for name, value in configuration.flatten(config).items()
        if name not in NOT_COMPARED and not name.startswith("logging.") and _is_used(name, config)
    }


def _is_used(name: str, config: TrainConfig) -> bool:
    """Whether a value of a method has an effect."""
    head, _, field = name.partition(".")
    return (
        head != "method"
        or field == "name"
        or (field in config.method.record.fields and field not in config.method.idle)
    )


def _differs(name: str, rows: Sequence[dict[str, Any]]) -> bool:
    return len({row[name] for row in rows if name in row}) > 1


def _label(config: TrainConfig, differing: Sequence[str]) -> str:
    """``"KD, standardized logits, temperature 2"``."""
    values = _compared(config)
    names = [name for name in dict.fromkeys((*ALWAYS_SAID, *differing)) if name in values and name != "method.name"]
    parts = (_part(name, values[name]) for name in names if values[name] is not None or name in differing)
    return ", ".join([config.method.record.label, *filter(None, parts)])


def _part(name: str, value: Any) -> str:
    words = recipe_differences.label(name)
    if name == "method.kd_standardize":
        return words if value else ""
    if name == "method.pair":
        return "layers {} and {}".format(*value)
    if name.startswith(("student.", "teacher.")):
        words = name.replace(".", " ")
    return f"{words} {written(value, UNSET)}"


def _place(group: Group) -> tuple[int, bool, str]:
    method = group.config.method
    return (
        list(METHODS).index(method.name),
        method.kd_standardize and "kd_standardize" in method.record.fields,
        group.label,
    )


def pairs(groups: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    """Every two rows once, the later one first: it is usually the one that claims to be better."""
    for n, later in enumerate(groups):
        for earlier in groups[:n]:
            yield later, earlier
