"""The page of a comparison, and the whole of it as a result to print and to write."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...training.report import page, report
from ...training.report.report import Fact, Section
from ..runs import Result
from . import figures, tables
from .comparison import NAME, Comparison
from .figures import PLUS_MINUS
from .statistics import BEYOND, UNKNOWN

ATTENTION_NOTE = "Mean over the training batches of the last epoch and over seeds; each row adds up to 1."


def result(comparison: Comparison, out: Path) -> Result:
    """The comparison as text and as files for the folder ``out``, to which the links of the page are relative."""
    return Result(comparison.summary, {f"{NAME}.html": render(comparison, out).encode(), **comparison.files()})


def render(comparison: Comparison, out: Path) -> str:
    """The page as HTML."""
    epoch, differences = comparison.epoch, comparison.differences
    columns = tables.columns(comparison.rows, PLUS_MINUS)
    bold = tables.near_best(comparison.rows, differences, epoch)
    notes = comparison.notes
    if bold:
        notes.insert(0, "Bold: the best of those with several seeds, and what is within noise of it.")
    return page.render(
        "comparison.html.jinja",
        Path(__file__).parent,
        title=comparison.title,
        subtitle=f"{len(comparison.runs)} runs of {len(comparison.rows)} methods, side by side",
        facts=list(_facts(comparison)),
        columns=list(columns),
        rows=[
            {"cells": cells, "near_best": row.group.label in bold}
            for row, cells in zip(comparison.rows, zip(*columns.values(), strict=True), strict=True)
        ],
        notes=notes,
        epoch=epoch,
        differences=[_line(pair) for pair in differences],
        # the others say what the table holds
        noise_notes=tables.sentences(differences, epoch)[-1:],
        sections=[section for section in _sections(comparison) if section.charts],
        runs=list(_runs(comparison, out)),
        files=list(comparison.files()),
    )


def _facts(comparison: Comparison) -> Iterator[Fact]:
    """The accuracy of each method, in large letters."""
    for row in comparison.rows:
        found = row.spread(comparison.epoch)
        seeds = f"{found.n} seeds" if found.n > 1 else "one seed"
        spread = "" if math.isnan(found.deviation) else f"{PLUS_MINUS} {100 * found.deviation:.2f}, "
        yield Fact(row.group.label, f"{100 * found.mean:.2f}%", f"{spread}{seeds}, {comparison.epoch} epoch")


def _line(pair: tables.Compared) -> dict[str, Any]:
    """A line of the table of differences."""
    found = pair.found
    known = found.verdict != UNKNOWN
    counts = f"{len(pair.first.seeds)} and {len(pair.second.seeds)}"
    return {
        "title": pair.title,
        "mean": tables.points(found.mean),
        "error": f"{100 * found.error:.2f}" if known else "-",
        "interval": tables.interval(found),
        "seeds": f"{found.n} in pairs" if found.paired and known else counts,
        "verdict": found.verdict,
        "beyond": found.verdict == BEYOND,
    }


def _sections(comparison: Comparison) -> Iterator[Section]:
    groups = comparison.groups
    drawn = [
        figures.seeds(groups, comparison.epoch),
        figures.differences(comparison.differences),
        figures.curves(groups),
    ]
    yield Section("Charts", [chart for chart in drawn if chart])
    yield Section("Attention", figures.attention(groups), ATTENTION_NOTE)


def _runs(comparison: Comparison, out: Path) -> Iterator[dict[str, Any]]:
    """Every run, with links to its report and its analyses."""
    for group in comparison.groups:
        for run in group.runs:
            folder = Path(os.path.relpath(run.folder.path.resolve(), out.resolve())).as_posix()
            files = [{"name": "report", "href": report.NAME}] if (run.folder.path / report.NAME).is_file() else []
            files += [
                {"name": f"{analysis['title']} ({file['name']})", "href": file["href"]}
                for analysis in report.analyses(run.folder)
                for file in analysis["files"]
                if file["name"] == "PNG"
            ]
            yield {
                "method": group.label,
                "seed": run.seed,
                "last": f"{100 * run.top1('last'):.2f}",
                "best": f"{100 * run.top1('best'):.2f}",
                "files": [{**file, "href": f"{folder}/{file['href']}"} for file in files],
            }
