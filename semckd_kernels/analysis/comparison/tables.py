"""The table of methods and the list of differences: as text, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import math
import re
import statistics as plain
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...training import paper
from ...training.report.units import duration
from ..runs import csv_bytes, table
from .groups import Group, pairs
from .statistics import BEYOND, CONFIDENCE, UNKNOWN, WITHIN, Difference, Spread, difference, spread

# more sentences than this are a table's business
MOST_SENTENCES = 15
PLUS_MINUS = "+-"
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Row:
    """A row of the table: accuracies from 0 to 1, of the last and the best epoch; None where nothing was measured."""

    group: Group
    last: Spread
    best: Spread
    step_ms: float | None
    memory_mb: float | None
    # the paper's, in percent; two values where its sources differ
    published: tuple[float, ...]

    def spread(self, epoch: str) -> Spread:
        return self.last if epoch == "last" else self.best


class Compared(NamedTuple):
    """Two rows, and how the first differs from the second."""

    first: Group
    second: Group
    found: Difference

    @property
    def title(self) -> str:
        return f"{self.first.label} - {self.second.label}"


def rows(groups: Sequence[Group]) -> list[Row]:
    return [
        Row(
            group,
            last=spread(group.top1("last").values()),
            best=spread(group.top1("best").values()),
            step_ms=_median([run.step_ms for run in group.runs]),
            memory_mb=_median([run.memory_mb for run in group.runs]),
            published=_published(group),
        )
        for group in groups
    ]


def differences(groups: Sequence[Group], epoch: str) -> list[Compared]:
    """How the accuracies of every two rows differ."""
    images = groups[0].runs[0].test_images
    return [Compared(a, b, difference(a.top1(epoch), b.top1(epoch), images)) for a, b in pairs(groups)]


def _median(values: Sequence[float | None]) -> float | None:
    """None where a run has none: the others would stand for it."""
    known = [value for value in values if value is not None]
    return plain.median(known) if known and len(known) == len(values) else None


def _published(group: Group) -> tuple[float, ...]:
    """The paper's accuracies of a method, as it trained it."""
    config = group.config
    row = paper.find(config.data.name, config.teacher.name if config.teacher else None, config.student.name)
    standardized = config.method.kd_standardize and "kd_standardize" in config.method.record.fields
    return (row.of(config.method.name) or ()) if row is not None and not standardized else ()


def percent(found: Spread, sign: str = PLUS_MINUS) -> str:
    """``"97.81 +- 0.71"``; without a deviation where there is one value."""
    deviation = "" if math.isnan(found.deviation) else f" {sign} {100 * found.deviation:.2f}"
    return f"{100 * found.mean:.2f}{deviation}"


def points(value: float) -> str:
    """A difference in percentage points, with its sign: ``"+0.56"``."""
    return f"{100 * value:+.2f}"


def interval(found: Difference) -> str:
    """``"+0.10 to +1.02"``; a dash where there is none."""
    return "-" if found.verdict == UNKNOWN else f"{points(found.low)} to {points(found.high)}"


def step(row: Row) -> str:
    return "-" if row.step_ms is None else duration(row.step_ms / 1e3)


def memory(row: Row) -> str:
    return "-" if row.memory_mb is None else f"{row.memory_mb / 1e3:.2f} GB"


def published(row: Row) -> str:
    return " to ".join(f"{x:.2f}" for x in row.published) or "-"


def columns(found: Sequence[Row], sign: str = PLUS_MINUS) -> dict[str, list[str]]:
    """The cells by the name of their column; without memory and the paper where no row has them."""
    makers: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.group.label,
        "seeds": lambda row: str(row.last.n),
        "last epoch, %": lambda row: percent(row.last, sign),
        "best epoch, %": lambda row: percent(row.best, sign),
        "the paper, %": published,
        "a step": step,
        "memory": memory,
    }
    cells = {name: [make(row) for row in found] for name, make in makers.items()}
    optional = ("the paper, %", "a step", "memory")
    return {name: column for name, column in cells.items() if name not in optional or set(column) != {"-"}}


def text(found: Sequence[Row]) -> str:
    """The table for a terminal."""
    cells = columns(found)
    lines = table(list(cells), list(zip(*cells.values(), strict=True))).splitlines()
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def sentences(compared: Sequence[Compared], epoch: str) -> list[str]:
    """What the differences come to, the clear ones first."""
    if not compared:
        return ["One method: there is nothing to compare it with."]
    lines = [_sentence(pair) for verdict in (BEYOND, WITHIN) for pair in compared if pair.found.verdict == verdict]
    if rest := len(lines[MOST_SENTENCES:]):
        lines[MOST_SENTENCES:] = [f"{rest} more differences are in comparison_differences.csv."]
    unknown = [group for pair in compared if pair.found.verdict == UNKNOWN for group in (pair.second, pair.first)]
    if single := dict.fromkeys(group.label for group in unknown if len(group.seeds) == 1):
        lines.append(f"{UNKNOWN.capitalize()} from one seed of {'; '.join(single)}.")
    if known := len([pair for pair in compared if pair.found.verdict != UNKNOWN]):
        many = f"; of {known} differences, one in twenty would be beyond noise by chance" if known > 1 else ""
        lines.append(
            f"Differences are in percentage points, of the {epoch} epoch. Noise is that of the seeds: an interval "
            f"holds the mean difference with {CONFIDENCE:.0%} confidence, each by itself{many}."
        )
    return lines


def _sentence(pair: Compared) -> str:
    found = pair.found
    how = f"{found.n} seeds in pairs" if found.paired else f"{len(pair.first.seeds)} and {len(pair.second.seeds)} seeds"
    error = f"standard error {100 * found.error:.2f}, interval {interval(found)}"
    return f"{found.verdict.capitalize()}: {pair.title} {points(found.mean)}, {error} ({how})."


def csv_rows(found: Sequence[Row]) -> bytes:
    """The table in full precision, accuracies from 0 to 1."""
    header = ("method", "seeds", "last_top1", "last_deviation", "best_top1", "best_deviation", "step_ms", "memory_mb")
    lines = [
        [r.group.label, " ".join(map(str, r.group.seeds)), *_values(r.last), *_values(r.best), r.step_ms, r.memory_mb]
        for r in found
    ]
    return csv_bytes(header, lines)


def csv_runs(groups: Sequence[Group]) -> bytes:
    """A line a run."""
    header = ("method", "seed", "folder", "last_top1", "best_top1", "best_epoch", "step_ms", "memory_mb", "seconds")
    lines = []
    for group in groups:
        for run in group.runs:
            accuracies = run.top1("last"), run.top1("best"), run.summary["accuracy"]["best"]["epoch"]
            costs = run.step_ms, run.memory_mb, run.summary["seconds"]
            lines.append([group.label, run.seed, run.folder.path, *accuracies, *costs])
    return csv_bytes(header, lines)


def csv_differences(compared: Sequence[Compared]) -> bytes:
    """A line a pair of methods, accuracies from 0 to 1."""
    header = ("first", "second", "difference", "standard_error", "low", "high", "seeds", "paired", "verdict")
    lines = []
    for a, b, found in compared:
        numbers = map(_known, (found.mean, found.error, found.low, found.high))
        lines.append([a.label, b.label, *numbers, found.n, found.paired, found.verdict])
    return csv_bytes(header, lines)


def _values(found: Spread) -> tuple[float, float | None]:
    return found.mean, _known(found.deviation)


def _known(value: float) -> float | None:
    """A field of a CSV file, empty where there is no number."""
    return None if math.isnan(value) else value


def latex(found: Sequence[Row], compared: Sequence[Compared], epoch: str) -> bytes:
    r"""A ``tabular`` for a page that uses the package booktabs; bold is what is not beyond noise of the best.

    Example:
        >>> from semckd_kernels.analysis.comparison import tables
        >>> tables.escape("KD, 50% of labels & more")
        'KD, 50\\% of labels \\& more'
    """
    bold = near_best(found, compared, epoch)
    cells = columns(found, r"$\pm$")
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(cells) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(escape, cells)) + r" \\", "\\midrule"]
    shown = next(name for name in cells if name.startswith(epoch))
    for n, row in enumerate(found):
        # a deviation brings its own markup
        values = [escape(column[n]) if name == "method" else column[n] for name, column in cells.items()]
        if row.group.label in bold:
            place = list(cells).index(shown)
            values[place] = f"\\textbf{{{values[place]}}}"
        lines.append(" & ".join(values) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    return ("\n".join(lines) + "\n").encode()


def near_best(found: Sequence[Row], compared: Sequence[Compared], epoch: str) -> set[str]:
    """Labels of the best of the rows with several seeds, and of those within noise of it; none below two such rows."""
    several = [row for row in found if row.last.n > 1]
    if len(several) < 2:
        return set()
    best = max(several, key=lambda row: row.spread(epoch).mean).group.label
    near = [pair for pair in compared if pair.found.verdict == WITHIN]
    labels = ({pair.first.label, pair.second.label} for pair in near)
    return {best, *(label for pair in labels if best in pair for label in pair)}


def escape(words: str) -> str:
    """Text for LaTeX."""
    return re.sub(r"[\\~^&%$#_{}]", lambda found: LATEX.get(found[0], f"\\{found[0]}"), words)
