"""Charts of a comparison: accuracy of each seed and over epochs, differences with their intervals, attention."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from ...training.report import attention_figures, charts
from ...training.report.charts import Array
from ...training.report.figures import HEIGHT, WIDTH, Chart, column, epochs
from ...training.report.report import attention_history
from .groups import Group
from .statistics import BEYOND, CONFIDENCE, UNKNOWN
from .tables import Compared, percent, points, rows

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
# letters of a name on one line of an axis
LETTERS = 24
# differences beyond this many are in the table alone
MOST_DIFFERENCES = 15
# of a band about a line
FAINT = 0.15
# the last of the series' colours, which is grey
GREY = charts.SERIES[-1]


def seeds(groups: Sequence[Group], epoch: str) -> Chart:
    """A dot a run, joined by seed from method to method, and a bar of one standard deviation about each mean."""
    found = rows(groups)
    with charts.style():
        figure = charts.new(WIDTH, 1.1 + 0.42 * len(groups))
        axes = figure.add_subplot(xlabel=f"test top-1 in %, {epoch} epoch")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        for seed in dict.fromkeys(seed for group in groups for seed in group.seeds):
            line = [(100 * group.top1(epoch)[seed], n) for n, group in enumerate(groups) if seed in group.seeds]
            axes.plot(*zip(*line, strict=True), color=charts.RULE, linewidth=0.8, zorder=1)
        for n, row in enumerate(found):
            color, marker = charts.SERIES[n % len(charts.SERIES)], charts.MARKERS[n % len(charts.MARKERS)]
            values = [100 * value for value in row.group.top1(epoch).values()]
            spread = row.spread(epoch)
            if not math.isnan(spread.deviation):
                low, width = 100 * (spread.mean - spread.deviation), 200 * spread.deviation
                axes.barh(n, width, left=low, height=0.5, color=color, alpha=FAINT, zorder=0)
            axes.plot([100 * spread.mean] * 2, [n - 0.32, n + 0.32], color=charts.INK, linewidth=1.4, zorder=2)
            axes.plot(values, [n] * len(values), color=color, marker=marker, linestyle="", zorder=3)
        axes.set_yticks(range(len(groups)), [_short(group.label) for group in groups])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        ends = ", ".join(f"{row.group.label} {percent(row.spread(epoch), PLUS_MINUS)}%" for row in found)
        words = f"Accuracy of every run, joined by seed; bars are one standard deviation about the mean: {ends}."
        return Chart("Accuracy of each seed", charts.svg(figure, "seeds", words), words)


def curves(groups: Sequence[Group]) -> Chart | None:
    """The mean test accuracy over epochs, in a band of one standard deviation; None where no epoch was measured."""
    courses = [(group, *_course(group)) for group in groups]
    courses = [course for course in courses if np.isfinite(course[2]).any()]
    if not courses:
        return None
    with charts.style():
        figure = charts.new(WIDTH, HEIGHT)
        axes = figure.add_subplot(xlabel="epoch", ylabel="test top-1 in %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        for n, (group, x, values) in enumerate(courses):
            with warnings.catch_warnings():
                # an epoch that no seed has measured
                warnings.simplefilter("ignore", RuntimeWarning)
                mean = np.nanmean(values, axis=0)
            color, few = charts.SERIES[n % len(charts.SERIES)], len(x) <= charts.FEW_POINTS
            style, marker = charts.STYLES[n % len(charts.STYLES)], charts.MARKERS[n % len(charts.MARKERS)]
            axes.plot(x, mean, label=group.label, color=color, linestyle=style, marker=marker if few else "")
            if len(values) > 1:
                deviation = np.std(values, axis=0, ddof=1)
                axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=FAINT, linewidth=0)
        _from_where_it_matters(axes, [values for _, _, values in courses])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        words = "Mean test accuracy over epochs, with one standard deviation of the seeds about it."
        return Chart("Accuracy over epochs", charts.svg(figure, "curves", words), words)


def _course(group: Group) -> tuple[list[float], Array]:
    """Epochs and accuracies in percent ``[seeds, epochs]``, as many epochs as all runs have."""
    metrics = [run.folder.metrics() for run in group.runs]
    count = min(map(len, metrics))
    values = [[100 * x for x in column(found, "test_top1")[:count]] for found in metrics]
    return epochs(metrics[0])[:count], np.array(values)


def _from_where_it_matters(axes: object, values: Sequence[Array]) -> None:
    """Cuts off the first epochs' climb, behind which differences of a point are not seen."""
    last = min(float(np.nanmin(rows[:, rows.shape[1] // 4 :])) for rows in values)
    high = max(float(np.nanmax(rows)) for rows in values)
    if math.isfinite(last) and high > last:
        room = 0.05 * (high - last)
        axes.set_ylim(last - room, high + room)  # type: ignore[attr-defined]


def differences(compared: Sequence[Compared]) -> Chart | None:
    """Every difference with its interval; None where there are none, or too many."""
    known = [pair for pair in compared if pair.found.verdict != UNKNOWN]
    if not known or len(known) > MOST_DIFFERENCES:
        return None
    with charts.style():
        figure = charts.new(WIDTH, 1.0 + 0.4 * len(known))
        axes = figure.add_subplot(xlabel="difference in percentage points")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.axvline(0, color=charts.INK, linewidth=0.9)
        for n, (_, _, found) in enumerate(known):
            clear = found.verdict == BEYOND
            mean, reach = 100 * found.mean, 100 * (found.high - found.mean)
            color, marker = (charts.SERIES[0], "o") if clear else (GREY, "D")
            axes.errorbar(mean, n, xerr=reach, color=color, marker=marker, capsize=3, linewidth=1.4)
        axes.set_yticks(
            range(len(known)), [f"{_short(pair.first.label)}\n- {_short(pair.second.label)}" for pair in known]
        )
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(known) - 0.4, -0.6)
        ends = ", ".join(f"{pair.title} {points(pair.found.mean)}, {pair.found.verdict}" for pair in known)
        words = f"Mean differences with intervals of {CONFIDENCE:.0%}; grey ones are within noise: {ends}."
        return Chart("Differences", charts.svg(figure, "differences", words), words)


def attention(groups: Sequence[Group]) -> list[Chart]:
    """The attention of the last epoch, mean over seeds, of each method that learns one."""
    found = []
    for n, group in enumerate(groups):
        histories = [attention_history(run.config, run.folder.attention(), run.summary) for run in group.runs]
        known = [history for history in histories if history is not None]
        if len(known) != len(histories) or len({history.weight[-1].shape for history in known}) != 1:
            continue
        weight, first = np.mean([history.weight[-1] for history in known], axis=0), known[0]
        layers = first.student_layers, first.teacher_layers
        figure = attention_figures.heat_map(weight, *layers, WIDTH, soft=first.soft, footnote=False)
        over = f"mean over {len(known)} seeds" if len(known) > 1 else "one seed"
        words = f"Attention of the last epoch, {over}: {group.label}."
        found.append(Chart(f"Attention: {group.label}", charts.svg(figure, f"attention{n}", words), words))
    return found


def _short(label: str) -> str:
    return label if len(label) <= LETTERS else f"{label[: LETTERS - 3]}..."
