"""The whole comparison: what is read, what it comes to in words, and its files but for the page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...training import paper
from ...training.report import recipe_differences
from . import tables
from .groups import Group, group
from .runs import EPOCHS, LeftOut, Run, Teacher, comparable, find, left_out_sentence, read, teachers
from .tables import Compared, Row

NAME = "comparison"
BEST_NOTE = "The best epoch is chosen by the test images that it is measured on, which flatters it."


@dataclass(frozen=True)
class Comparison:
    """Rows and differences of runs that compare, and the runs that do not."""

    rows: list[Row]
    differences: list[Compared]
    left_out: list[LeftOut]
    teachers: list[Teacher]
    # whose accuracies the differences are of: "last" or "best"
    epoch: str

    @property
    def groups(self) -> list[Group]:
        return [row.group for row in self.rows]

    @property
    def runs(self) -> list[Run]:
        return [run for found in self.groups for run in found.runs]

    @property
    def title(self) -> str:
        config = self.groups[0].config
        return f"{config.student.name} on {config.data.name}"

    @property
    def notes(self) -> list[str]:
        """What to know of the table, a sentence each."""
        return [*self._measured(), *self._published(), *([left_out_sentence(self.left_out)] if self.left_out else [])]

    def _measured(self) -> Iterator[str]:
        images, first = self.runs[0].test_images, self.rows[0].spread(self.epoch).mean
        error = math.sqrt(first * (1 - first) / images)
        yield (
            f"Top-1 accuracy on {images:,} test images, mean and standard deviation over seeds. One image is "
            f"{1 / images:.2%}; other test images of the kind would move an accuracy of {first:.1%} by {error:.1%}."
        )
        yield BEST_NOTE
        for teacher in self.teachers:
            yield f"Teacher: {teacher.name}, {teacher.top1:.2%} ('{teacher.path}')."
        machines = {str(run.summary["environment"].get("device")) for run in self.runs}
        if len(machines) > 1:
            yield f"Times of a step do not compare: they are of {' and '.join(sorted(machines))}."
        if all(row.memory_mb is None for row in self.rows):
            yield "Memory is that of a GPU; none of these runs has used one."

    def _published(self) -> Iterator[str]:
        if any(row.published for row in self.rows):
            yield f"The paper: {paper.SOURCE.partition(';')[0]}."
        for found in self.groups:
            if found.config.data.name in recipe_differences.PAPER_DATA and (
                differing := recipe_differences.differences(found.config)
            ):
                yield f"{found.label}: not the paper's recipe: {'; '.join(differing)}."

    @property
    def summary(self) -> str:
        """What to print."""
        lines = tables.sentences(self.differences, self.epoch)
        return "\n".join([tables.text(self.rows), "", *lines, "", *self.notes])

    def files(self) -> dict[str, bytes]:
        """CSV and LaTeX by name."""
        return {
            f"{NAME}.csv": tables.csv_rows(self.rows),
            f"{NAME}_runs.csv": tables.csv_runs(self.groups),
            f"{NAME}_differences.csv": tables.csv_differences(self.differences),
            f"{NAME}.tex": tables.latex(self.rows, self.differences, self.epoch),
        }


def compare(paths: Sequence[str | Path], epoch: str = "last") -> Comparison:
    """Runs side by side.

    Args:
        paths: folders of runs, and folders that hold some. Runs that differ by the seed alone make a row. Taken are the
            finished ones, of the data set and the student that most of them have.
        epoch: differences are of the accuracies after the ``"last"`` epoch, or after each run's ``"best"``.

    Raises:
        ValueError: a path holds no run, no run is finished, or ``epoch`` is none of the two.
    """
    if epoch not in EPOCHS:
        raise ValueError(f"epoch must be one of {', '.join(EPOCHS)}, got '{epoch}'")
    finished, others = read(find([Path(path) for path in paths]))
    if not finished:
        raise ValueError(f"there is nothing to compare: no run is finished. {left_out_sentence(others)}")
    kept, apart = comparable(finished)
    groups, repeated = group(kept)
    return Comparison(
        tables.rows(groups), tables.differences(groups, epoch), [*others, *apart, *repeated], teachers(kept), epoch
    )


def default_out(comparison: Comparison) -> Path:
    """``comparison`` in the deepest folder that holds all runs that are compared.

    Raises:
        ValueError: that is the root of the file system.
    """
    folder = Path(os.path.commonpath([run.folder.path.resolve().parent for run in comparison.runs]))
    if folder == folder.parent:
        raise ValueError("the runs share no folder that the comparison could go into: give --out DIR")
    here = Path.cwd()
    # as people write it
    return (folder.relative_to(here) if folder.is_relative_to(here) else folder) / NAME
