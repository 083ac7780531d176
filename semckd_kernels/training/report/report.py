"""The report of a finished run: one HTML file that needs nothing outside itself.

It reads the run's folder alone (metrics, attention, configuration, summary), so it can be made again at any time; what
a run does not have (a teacher, an attention, a second epoch, a column) is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import paper
from ..config import TrainConfig
from ..methods import METHODS
from ..run.checkpoint import write_file
from ..run.folder import Attention, RunFolder
from . import figures as report_figures
from . import page, recipe_differences
from .attention_figures import AttentionHistory
from .figures import Chart, Rows, column
from .units import duration, three_digits

NAME = "report.html"
# what `semckd analyze` writes into the run's folder analysis/, by the beginning of its files' names
ANALYSES = {
    "attention": "attention over the test images",
    "attention_epochs": "attention over the epochs of training",
    "attention_classes": "attention by class",
    "mismatch": "semantic mismatch",
    "single_pairs": "single pairs of layers",
    "gradcam": "Grad-CAM",
}
FILE_TYPES = ("png", "svg", "pdf", "csv", "json")
NOT_FINITE = "not finite"
ATTENTION_NOTE = (
    "Mean over the training batches of an epoch. The attention of a sample depends on the other samples of its batch. "
    "Each row adds up to 1."
)


@dataclass(frozen=True)
class Fact:
    """A number of the headline."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Accuracy beside what was published for the pair."""

    caption: str
    rows: list[dict[str, str]]
    notes: list[str]


def write(folder: RunFolder) -> Path:
    """Writes ``report.html`` into the folder of a finished run, whole or not at all; returns its path.

    Raises:
        ValueError: the folder is no finished run's, or a file of it is not as the run has written it.
        OSError: a file cannot be read or written.
    """
    folder.verify()
    path = folder.path / NAME
    write_file(path, render(folder).encode())
    return path


def render(folder: RunFolder) -> str:
    """The report as HTML, of files as they are."""
    config, rows, summary = folder.config, folder.metrics(), folder.summary
    return page.render(
        "report.html.jinja",
        title=folder.path.resolve().name,
        subtitle=describe(config),
        facts=headline(config, rows),
        warnings=[warning["message"] for warning in summary.get("warnings", ())],
        comparison=compare(config, rows),
        sections=sections(config, rows, attention_history(config, folder.attention(), summary)),
        analyses=analyses(folder),
        epochs=epoch_table(rows, [warning["term"] for warning in summary.get("warnings", ())]),
        tables=[
            {"title": "Environment", "rows": list(_flatten(summary.get("environment") or {}))},
            {"title": "Networks and data", "rows": networks(config, summary)},
            {"title": "Configuration", "rows": list(_flatten(config.to_dict()))},
        ],
    )


def describe(config: TrainConfig) -> str:
    """What was trained, in one line."""
    method = config.method.record.label
    if config.method.pair is not None:
        method = "student layer {} with teacher layer {} alone".format(*config.method.pair)
    if config.teacher is None:
        return f"{config.student.name} trained alone on {config.data.name}"
    return f"{config.student.name} distilled from {config.teacher.name} on {config.data.name}: {method}"


def headline(config: TrainConfig, rows: Rows) -> list[Fact]:
    """The numbers that one looks for first."""
    facts = []
    for name, label in (("test_top1", "Test accuracy, top-1"), ("test_top5", "Test accuracy, top-5")):
        if (best := _best(rows, name)) is not None:
            epoch, value = best
            last = column(rows, name)[-1]
            facts.append(Fact(label, f"{100 * value:.2f}%", f"best, epoch {epoch:.0f}; last {100 * last:.2f}%"))
    if (seconds := np.nansum(column(rows, "seconds"))) > 0:
        facts.append(Fact("Training time", duration(float(seconds)), f"{len(rows)} of {config.recipe.epochs} epochs"))
    speed = [x for x in column(rows[1:] or rows, "images_per_second") if math.isfinite(x)]
    if speed:
        facts.append(Fact("Images a second", three_digits(float(np.median(speed))), f"on {config.hardware.device}"))
        images = config.recipe.batch_size * config.hardware.world_size
        parts = sum(report_figures.step_parts(rows).values())
        step = duration(parts / 1e3 if parts else images / float(np.median(speed)))
        prepared = ", teacher prepared" if config.teacher is not None and config.hardware.prepare_teacher else ""
        facts.append(Fact("A step", step, f"of {images} images{prepared}"))
    return facts


def compare(config: TrainConfig, rows: Rows) -> Comparison | None:
    """The run beside the published figures; None where the data set has none."""
    data, method = config.data.name, config.method.name
    if data not in recipe_differences.PAPER_DATA:
        return None
    teacher = config.teacher.name if config.teacher else None
    published = paper.find(data, teacher, config.student.name)
    best = _best(rows, "test_top1")
    own = f"{100 * best[1]:.2f}" if best else ""
    table = []
    if published is not None:
        for name, record in METHODS.items():
            values = published.of(name)
            # without a teacher only the student alone is this run's business
            if values is not None and (teacher is not None or not record.needs_teacher):
                table.append(_row(record.label, values, published.rerun_of(name), own if name == method else ""))
    if own and not any(row["this"] for row in table):
        table.append(_row(METHODS[method].label, (), None, own))
    if not table:
        return None
    pair = f"{published.teacher} -> {published.student}" if published and teacher else config.student.name
    notes = [paper.BELOW_KD, f"Source: {paper.SOURCE}."]
    if published is None:
        notes.insert(0, "No figure was published for these networks, or none that this table holds.")
    if differing := recipe_differences.differences(config):
        notes.insert(0, f"Not the paper's recipe: {'; '.join(differing)}.")
    return Comparison(f"Top-1 accuracy in %, {data}, {pair}", table, notes)


def sections(config: TrainConfig, rows: Rows, attention: AttentionHistory | None) -> list[Section]:
    """All charts that the run has numbers for."""
    published = paper.find(config.data.name, config.teacher.name if config.teacher else None, config.student.name)
    figures = (published.of(config.method.name) if published else None) or ()
    curves = [
        report_figures.accuracy(rows, min(figures, default=None)),
        report_figures.losses(rows, {term.name: term.label for term in config.method.record.terms}),
        report_figures.learning_rate(rows),
    ]
    found = [Section("Curves", [chart for chart in curves if chart])]
    if attention is not None:
        drawn = [report_figures.attention_curves(attention), report_figures.attention_heat_map(attention)]
        found.append(Section("Attention", [chart for chart in drawn if chart], ATTENTION_NOTE))
    if step := report_figures.step_split(rows):
        note = "The mean step of an epoch" + (": median over all epochs but the first." if len(rows) > 1 else ".")
        found.append(Section("Where the time goes", [step], note))
    return [section for section in found if section.charts]


def attention_history(
    config: TrainConfig, attention: Attention | None, summary: Mapping[str, Any]
) -> AttentionHistory | None:
    """The attention of each epoch, its layers with their shapes; None where there is none to learn."""
    if attention is None or config.method.record.association != "attention" or len(attention.teacher_layers) < 2:
        return None
    student = layer_labels(attention.student_layers, summary, "student")
    teacher = layer_labels(attention.teacher_layers, summary, "teacher")
    return AttentionHistory(attention.epochs, student, teacher, attention.weight.numpy(), config.method.soft)


def layer_labels(layers: Sequence[str], summary: Mapping[str, Any], side: str) -> list[str]:
    """Names of layers with the shapes that the summary has of them: ``"layer1 (64 x 32 x 32)"``."""
    known = {layer["name"]: layer["shape"] for layer in summary.get("layers", {}).get(side, ())}
    return [f"{name} ({' x '.join(map(str, known[name]))})" if name in known else name for name in layers]


def networks(config: TrainConfig, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Networks, their layers and the data as names and text."""
    rows = []
    counts = summary.get("counts", {})
    for side, model in (("student", config.student), ("teacher", config.teacher)):
        if model is not None:
            rows.append((side, model.name))
            layers = [layer["name"] for layer in summary.get("layers", {}).get(side, ())]
            rows.append((f"{side}'s layers", ", ".join(layer_labels(layers, summary, side)) or "-"))
    rows += [(name.replace("_", " "), f"{n:,}") for name, n in counts.items() if n is not None]
    return rows


def analyses(folder: RunFolder) -> list[dict[str, Any]]:
    """The files of analyses that lie in the run's folder: a title, and name and address of each."""
    found = []
    for stem, title in ANALYSES.items():
        names = [f"{stem}.{kind}" for kind in FILE_TYPES if (folder.path / "analysis" / f"{stem}.{kind}").is_file()]
        if names:
            files = [{"name": name.rpartition(".")[2].upper(), "href": f"analysis/{name}"} for name in names]
            found.append({"title": title, "files": files})
    return found


def epoch_table(rows: Rows, warned: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics as text, without columns that hold nothing.

    Args:
        rows: of metrics.csv.
        warned: columns that are known to have had values that are not finite: they are shown even if all are.
    """
    names = [
        name for name in (rows[0] if rows else ()) if name in warned or any(map(math.isfinite, column(rows, name)))
    ]
    columns = [column(rows, name) for name in names]
    table = [[_number(x) for x in values] for values in zip(*columns, strict=True)]
    return {"names": names, "rows": table, "not_finite": any(NOT_FINITE in row for row in table)}


def _best(rows: Rows, name: str) -> tuple[float, float] | None:
    """Epoch and value of the first largest value of a column."""
    values = column(rows, name)
    finite = [n for n, x in enumerate(values) if math.isfinite(x)]
    if not finite:
        return None
    best = max(finite, key=lambda n: values[n])
    return report_figures.epochs(rows)[best], values[best]


def _row(name: str, published: tuple[float, ...], rerun: float | None, own: str) -> dict[str, str]:
    spread = " to ".join(f"{x:.2f}" for x in published) or "-"
    return {"name": name, "paper": spread, "rerun": f"({rerun:.2f})" if rerun is not None else "", "this": own}


def _number(x: float) -> str:
    """Six digits, and never a bare exponent for a whole number."""
    if not math.isfinite(x):
        return NOT_FINITE
    return f"{x:.0f}" if x == int(x) and abs(x) < 1e9 else f"{x:.6g}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted names and text."""
    for name, value in values.items():
        full = f"{prefix}{name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{full}.")
        elif value is None:
            yield full, "-"
        elif isinstance(value, (list, tuple)):
            yield full, ", ".join(map(str, value)) or "-"
        else:
            yield full, str(value)
