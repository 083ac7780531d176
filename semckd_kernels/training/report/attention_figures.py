"""Pictures of attention: student layers by teacher layers, and over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import charts
from .attention_bound import at_bound, bound_note, upper_bound
from .charts import Array

# more lines than this in one panel cannot be told apart
MOST_LINES = 8
PANELS_A_ROW = 2
UNIT = "attention weight"


@dataclass(frozen=True)
class AttentionHistory:
    """Mean attention of each epoch.

    Attributes:
        epochs: counted from 1.
        student_layers, teacher_layers: names, which may hold shapes, in parentheses.
        weight: ``[epochs, S, T]``.
        soft: temperature of the attention.
    """

    epochs: list[int]
    student_layers: list[str]
    teacher_layers: list[str]
    weight: Array
    soft: float = 1.0


def heat_map(
    weight: Array,
    student: Sequence[str],
    teacher: Sequence[str],
    width: float,
    title: str = "",
    soft: float = 1.0,
    footnote: bool = True,
) -> Figure:
    """Weights ``[S, T]`` as an annotated heat map, ``width`` inches wide; those at their bound have a frame.

    Args:
        weight, student, teacher: as in :class:`AttentionHistory`.
        width: in inches.
        title: over the figure.
        soft: temperature of the attention.
        footnote: whether the figure itself says what a frame means.
    """
    framed = at_bound(weight, soft)
    note = f"Framed: {bound_note(weight, soft)}" if framed.any() and footnote else ""
    with charts.style():
        height = max(2.2, 1.0 + (0.3 if title else 0.0) + 0.42 * len(weight)) + (0.45 if note else 0.0)
        figure = charts.new(width, height)
        axes = figure.add_subplot(xlabel="teacher layer", ylabel="student layer")
        # one scale for all runs: near-uniform attention looks near-uniform
        mesh = charts.heat_map(axes, weight, student, teacher, charts.Scale(1.0), framed)
        charts.color_bar(figure, mesh, axes, UNIT)
        charts.heading(figure, title)
        if note:
            charts.footnote(figure, note)
    return figure


def curves(history: AttentionHistory, width: float, title: str = "") -> Figure:
    """A panel for each student layer: its weight on each teacher layer over epochs."""
    students, teachers = len(history.student_layers), len(history.teacher_layers)
    wide = min(PANELS_A_ROW, students)
    high = math.ceil(students / wide)
    mesh = None
    bound, saturated = upper_bound(teachers, history.soft), bool(at_bound(history.weight, history.soft).any())
    limit = f"upper bound {bound:.3f}"
    with charts.style(8.0):
        figure = charts.new(width, 0.6 + 1.75 * high)
        panels = list(figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True).flatten())
        for n, (axes, name) in enumerate(zip(panels, history.student_layers, strict=False)):
            axes.set_title(f"student {short(name)}")
            if teachers <= MOST_LINES:
                lines = dict(zip(map(short, history.teacher_layers), history.weight[:, n].T.tolist(), strict=True))
                charts.curves(axes, history.epochs, lines)
                if saturated:
                    # the same name in each panel: the legend has it once
                    axes.axhline(bound, color=charts.INK, linewidth=0.9, linestyle=(0, (2, 3)), label=limit)
            else:
                mesh = _epoch_image(axes, history, n)
        for axes in panels[students:]:
            axes.set_axis_off()
        _outer_labels(panels[:students], wide, "teacher layer, from 0" if mesh else UNIT)
        if mesh is None:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(teachers, 4), title="teacher layer")
        else:
            charts.color_bar(figure, mesh, panels[:students], UNIT)
        charts.heading(figure, title)
    return figure


def strongest(history: AttentionHistory) -> str:
    """A sentence that says where the student's layers look most in the last epoch."""
    weight = history.weight[-1]
    if len(weight) > MOST_LINES:
        i, j = np.unravel_index(int(weight.argmax()), weight.shape)
        pair = f"student {short(history.student_layers[i])}, teacher {short(history.teacher_layers[j])}"
        return f"The largest weight is {weight[i, j]:.3f}: {pair}."
    pairs = (
        f"{short(name)} looks most at {short(history.teacher_layers[int(row.argmax())])} ({row.max():.3f})"
        for name, row in zip(history.student_layers, weight, strict=True)
    )
    return "Student layer " + "; ".join(pairs) + "."


def short(name: str) -> str:
    """A layer's name without its shape."""
    return name.split(" (")[0]


def _epoch_image(axes: Axes, history: AttentionHistory, student: int) -> Any:
    """Epochs by teacher layers as an image, for more layers than lines can show."""
    steps = np.array([*history.epochs, history.epochs[-1] + 1]) - 0.5
    layers = np.arange(len(history.teacher_layers) + 1) - 0.5
    axes.grid(False)
    return axes.pcolormesh(
        steps, layers, history.weight[:, student].T, cmap="Blues", vmin=0.0, vmax=1.0, rasterized=True
    )


def _outer_labels(panels: Sequence[Axes], wide: int, label: str) -> None:
    """Axis labels at the outer panels only."""
    for n, axes in enumerate(panels):
        if n % wide == 0:
            axes.set_ylabel(label)
        if n + wide >= len(panels):
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
