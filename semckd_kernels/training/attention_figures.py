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
from .charts import Array

# more lines than this in one panel cannot be told apart
MOST_LINES = 8
PANELS_A_ROW = 2


@dataclass(frozen=True)
class AttentionHistory:
    """Mean attention of each epoch: ``weight`` is ``[epochs, S, T]``; names may hold shapes, in parentheses."""

    epochs: list[int]
    student_layers: list[str]
    teacher_layers: list[str]
    weight: Array


def heat_map(weight: Array, student: Sequence[str], teacher: Sequence[str], width: float, title: str = "") -> Figure:
    """Weights ``[S, T]`` as an annotated heat map, ``width`` inches wide."""
    with charts.style():
        figure = charts.new(width, max(2.2, 1.0 + (0.3 if title else 0.0) + 0.42 * len(weight)))
        axes = figure.add_subplot(xlabel="teacher layer", ylabel="student layer")
        # from zero, so that near-uniform attention looks near-uniform
        mesh = charts.heat_map(axes, weight, student, teacher, low=0.0)
        charts.color_bar(figure, mesh, axes, "weight")
        charts.heading(figure, title)
    return figure


def curves(history: AttentionHistory, width: float, title: str = "") -> Figure:
    """A panel for each student layer: its weight on each teacher layer over epochs."""
    students, teachers = len(history.student_layers), len(history.teacher_layers)
    wide = min(PANELS_A_ROW, students)
    high = math.ceil(students / wide)
    mesh = None
    with charts.style(8.0):
        figure = charts.new(width, 0.6 + 1.75 * high)
        panels = list(figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True).flatten())
        for n, (axes, name) in enumerate(zip(panels, history.student_layers, strict=False)):
            axes.set_title(f"student {short(name)}")
            if teachers <= MOST_LINES:
                lines = dict(zip(map(short, history.teacher_layers), history.weight[:, n].T.tolist(), strict=True))
                charts.curves(axes, history.epochs, lines)
            else:
                mesh = _epoch_image(axes, history, n)
        for axes in panels[students:]:
            axes.set_axis_off()
        _outer_labels(panels[:students], wide, "teacher layer, from 0" if mesh else "weight")
        if mesh is None:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(teachers, 4), title="teacher layer")
        else:
            charts.color_bar(figure, mesh, panels[:students], "weight")
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
    high = float(history.weight.max())
    axes.grid(False)
    return axes.pcolormesh(
        steps, layers, history.weight[:, student].T, cmap="Blues", vmin=0.0, vmax=high, rasterized=True
    )


def _outer_labels(panels: Sequence[Axes], wide: int, label: str) -> None:
    """Axis labels at the outer panels only."""
    for n, axes in enumerate(panels):
        if n % wide == 0:
            axes.set_ylabel(label)
        if n + wide >= len(panels):
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
