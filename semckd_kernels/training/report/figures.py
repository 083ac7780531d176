"""The charts of a run's report, each from the run's own numbers; None where the run has none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..run.rows import TRAIN, terms_of
from . import attention_figures, charts
from .attention_bound import bound_note, upper_bound
from .attention_figures import AttentionHistory
from .units import duration

# inches: a chart as wide as a phone's screen, so that its text keeps its size there
WIDTH, HEIGHT = 4.6, 2.9
# losses that differ by more than this need a logarithmic axis to be seen together
LOG_RATIO = 30.0
STEP_PARTS = {
    "data_ms": "data",
    "teacher_ms": "teacher",
    "student_ms": "student",
    "criterion_ms": "criterion",
    "optimizer_ms": "optimizer",
    "other_ms": "other",
}

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Chart:
    """A chart as it stands in the page, with the sentence that a screen reader says in its place."""

    title: str
    svg: str
    description: str


def column(rows: Rows, name: str) -> list[float]:
    """A column of the metrics, NaN where it has no value."""
    values = (row.get(name) for row in rows)
    return [math.nan if value is None else float(value) for value in values]


def present(rows: Rows, names: Mapping[str, str], scale: float = 1.0) -> dict[str, list[float]]:
    """The columns that hold any finite value, by label, times ``scale``."""
    found = {label: [scale * x for x in column(rows, name)] for name, label in names.items()}
    return {label: values for label, values in found.items() if any(map(math.isfinite, values))}


def epochs(rows: Rows) -> list[float]:
    """The epoch of each row, counted from 1 where the rows do not say."""
    found = column(rows, "epoch")
    return found if all(map(math.isfinite, found)) else [float(n + 1) for n in range(len(rows))]


def accuracy(rows: Rows, published: float | None = None) -> Chart | None:
    """Accuracy over epochs, with the paper's figure as a line where there is one."""
    names = {"test_top1": "test top-1", "test_top5": "test top-5", "train_top1": "training top-1"}
    series = present(rows, names, 100.0)
    if not series:
        return None
    with charts.style():
        figure = charts.new(WIDTH, HEIGHT)
        axes = figure.add_subplot(xlabel="epoch", ylabel="accuracy in %")
        charts.curves(axes, epochs(rows), series)
        if published is not None:
            label = f"the paper: {published:.2f}%"
            axes.axhline(published, color=charts.INK, linewidth=0.9, linestyle=(0, (2, 3)), label=label)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        best = _best(epochs(rows), series)
        return Chart("Accuracy", charts.svg(figure, "accuracy", best), best)


def losses(rows: Rows, labels: Mapping[str, str]) -> Chart | None:
    """Loss terms over epochs, on a logarithmic axis where they differ much.

    Args:
        rows: of metrics.csv.
        labels: of terms by name; other terms are shown by their name.
    """
    terms = {f"{TRAIN}{name}": labels.get(name, name) for name in terms_of(rows[0] if rows else ())}
    series = present(rows, {f"{TRAIN}loss": "training, total", **terms, "test_loss": "test, cross-entropy"})
    if not series:
        return None
    log = _is_wide([x for values in series.values() for x in values])
    with charts.style():
        figure = charts.new(WIDTH, HEIGHT)
        axes = figure.add_subplot(xlabel="epoch", ylabel="loss" + (", logarithmic" if log else ""))
        if log:
            axes.set_yscale("log")
        charts.curves(axes, epochs(rows), series)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        ends = (f"{label} {_change(values)}" for label, values in series.items())
        text = "Loss over epochs, terms before they are weighted: " + ", ".join(ends) + "."
        return Chart("Loss terms", charts.svg(figure, "loss", text), text)


def learning_rate(rows: Rows) -> Chart | None:
    """The learning rate over epochs; None where it is one value throughout."""
    series = present(rows, {"lr": "learning rate"})
    values = series.get("learning rate", [])
    if len(set(values)) < 2:
        return None
    with charts.style():
        figure = charts.new(WIDTH, HEIGHT * 0.75)
        axes = figure.add_subplot(xlabel="epoch", ylabel="learning rate")
        if _is_wide(values):
            axes.set_yscale("log")
        charts.curves(axes, epochs(rows), series)
        text = f"Learning rate of each epoch's last step, {_change(values)}."
        return Chart("Learning rate", charts.svg(figure, "lr", text), text)


def step_split(rows: Rows) -> Chart | None:
    """Time of a step by part; see :func:`step_parts`."""
    parts = step_parts(rows)
    if not parts:
        return None
    total = sum(parts.values())
    times = {part: duration(ms / 1e3) for part, ms in parts.items()}
    scale, unit = (1e-3, "seconds") if max(parts.values()) >= 1e3 else (1.0, "milliseconds")
    with charts.style():
        figure = charts.new(WIDTH, 0.7 + 0.3 * len(parts))
        axes = figure.add_subplot(xlabel=f"{unit} a step")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        bars = axes.barh(list(parts), [scale * ms for ms in parts.values()], color=charts.SERIES[0], height=0.65)
        labels = [f"{times[part]}, {100 * ms / total:.1f}%" for part, ms in parts.items()]
        axes.bar_label(bars, labels, padding=4)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        # room for the label of the longest bar
        axes.set_xlim(0, 1.45 * scale * max(parts.values()))
        text = f"A step takes {duration(total / 1e3)}: " + ", ".join(f"{k} {time}" for k, time in times.items()) + "."
        return Chart("Time of a step", charts.svg(figure, "step", text), text)


def step_parts(rows: Rows) -> dict[str, float]:
    """Milliseconds of each part of a step that takes any time, the median over epochs.

    Nothing where a part could not be timed.
    """
    # the first epoch pays for allocations and compilations that the others do not
    counted = rows[1:] or rows
    parts: dict[str, float] = {}
    found = present(counted, STEP_PARTS)
    if len(found) < len(STEP_PARTS):
        # inside a CUDA graph there are no parts
        return parts
    for label, values in found.items():
        typical = float(np.nanmedian(values))
        if typical > 0:
            parts[label] = typical
    return parts


def attention_heat_map(history: AttentionHistory) -> Chart:
    """The attention of the last epoch."""
    epoch, weight, layers = history.epochs[-1], history.weight[-1], (history.student_layers, history.teacher_layers)
    # the sentence below the chart says what a frame means
    figure = attention_figures.heat_map(weight, *layers, WIDTH, soft=history.soft, footnote=False)
    text = f"Mean attention in epoch {epoch}. " + attention_figures.strongest(history)
    if note := bound_note(weight, history.soft):
        text += f" Framed: {note}"
    return Chart(f"Attention, epoch {epoch}", charts.svg(figure, "heat", text), text)


def attention_curves(history: AttentionHistory) -> Chart | None:
    """Weights over epochs, a panel for each student layer; None for a single epoch."""
    if len(history.epochs) < 2:
        return None
    first, last = history.epochs[0], history.epochs[-1]
    change = float(np.abs(history.weight[-1] - history.weight[0]).max())
    text = f"Weights over epochs {first} to {last}; the largest change between the two is {change:.3f}."
    bound = upper_bound(len(history.teacher_layers), history.soft)
    text += f" No weight can be above {bound:.3f}."
    return Chart("Attention over epochs", charts.svg(attention_figures.curves(history, WIDTH), "attention", text), text)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis, and can have one."""
    finite = [x for x in values if math.isfinite(x)]
    return min(finite) > 0 and max(finite) > LOG_RATIO * min(finite)


def _change(values: Sequence[float]) -> str:
    return f"from {values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else f"{values[0]:.3g}"


def _best(steps: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    parts = []
    for label, values in series.items():
        best = int(np.nanargmax(values))
        parts.append(f"{label} {values[best]:.2f}% at best (epoch {steps[best]:.0f})")
    return "Accuracy over epochs: " + ", ".join(parts) + "."
