"""Figures in one style: colours, heat maps, curves, and their export as PNG and as SVG for light and dark pages."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Okabe and Ito's colours, told apart with any colour vision; line styles and markers tell them apart without colour.
# Each has a counterpart for a dark page, which SVG files reach by a CSS variable.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#3b9ac4", "#7a5c3e", "#6b6b6b")
SERIES_DARK = ("#56b4e9", "#ff8c42", "#2fcf9f", "#e39bd0", "#f0c040", "#9ad8f5", "#cdb08c", "#b5b5b5")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 2)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, INK_DARK = "#1b1f24", "#e6e8eb"
RULE, RULE_DARK = "#d5dae0", "#3a4047"
# stands out from every blue of a heat map
FRAME = "#d55e00"
# below this many epochs a curve shows its points
FEW_POINTS = 30
# a cell narrower than a tenth of the figure has no room for its number
NUMBERED_COLUMNS = 10
# names of columns that are longer in all are turned upright
ROW_OF_LETTERS = 40
PNG_DPI = 160
# of a footnote
LETTERS_AN_INCH = 17


def css_variables(dark: bool) -> str:
    """The CSS declarations that :func:`svg` refers to, for one theme."""
    series = SERIES_DARK if dark else SERIES
    pairs = {f"--c{n}": color for n, color in enumerate(series)}
    pairs |= {"--ink": INK_DARK if dark else INK, "--rule": RULE_DARK if dark else RULE}
    return "".join(f"{name}:{color};" for name, color in pairs.items())


def style(size: float = 9.0) -> AbstractContextManager[None]:
    """The settings under which a figure is made; ``size`` is that of ordinary text, in points."""
    settings: dict[str, Any] = {
        "font.size": size,
        "axes.titlesize": size + 1,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": RULE,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.0,
        # text stays text: it can be read out, searched and scaled
        "svg.fonttype": "none",
        "svg.hashsalt": "semckd",
        # publishers refuse matplotlib's own kind, Type 3
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "hatch.linewidth": 0.5,
    }
    # rc_context knows each name as a literal type
    return matplotlib.rc_context(settings)  # type: ignore[arg-type]


def new(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which belongs to no window and no global state."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def curves(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> None:
    """Draws one line for each series against epochs; values that are not finite leave gaps."""
    marker = len(x) <= FEW_POINTS
    for n, (label, values) in enumerate(series.items()):
        axes.plot(
            list(x),
            list(values),
            label=label,
            color=SERIES[n % len(SERIES)],
            linestyle=STYLES[n % len(STYLES)],
            marker=MARKERS[n % len(MARKERS)] if marker else "",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if len(x) == 1:
        # one epoch: without room about it, the axis would show fractions of an epoch
        axes.set_xlim(x[0] - 0.5, x[0] + 0.5)


@dataclass(frozen=True)
class Scale:
    """What the values of a heat map look like: the colour map, the values at its ends, how a number is written."""

    high: float
    low: float = 0.0
    cmap: str = "Blues"
    form: str = "{:.3f}"


def heat_map(
    axes: Axes,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Scale,
    framed: NDArray[np.bool_] | None = None,
) -> Any:
    """Draws a matrix as cells with their numbers; a cell that is not finite is hatched.

    Args:
        axes: where to.
        values: ``[rows, columns]``.
        rows, columns: names; a name's part in parentheses goes on a line of its own.
        scale: what values look like.
        framed: which cells have a frame, ``[rows, columns]``.

    Returns:
        What a colour bar is made from.
    """
    masked = np.ma.masked_invalid(values)
    high = max(scale.high, scale.low + 1e-12)
    mesh = axes.pcolormesh(masked, cmap=scale.cmap, vmin=scale.low, vmax=high, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [two_lines(name) for name in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [two_lines(name) for name in rows])
    longest = max(len(part) for name in columns for part in two_lines(name).split("\n"))
    if longest * len(columns) > ROW_OF_LETTERS:
        # upright there is room for one line
        axes.set_xticklabels([name.split(" (")[0] for name in columns], rotation=90)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        if not np.isfinite(value):
            patch = Rectangle((j, i), 1, 1, facecolor="none", edgecolor=RULE, hatch="///", linewidth=0)
            axes.add_patch(patch)
        elif len(columns) <= NUMBERED_COLUMNS:
            color = _contrast(np.asarray(mesh.cmap(mesh.norm(value)), dtype=np.float64))
            size = min(9.0, 70.0 / max(len(columns), 1))
            axes.text(j + 0.5, i + 0.5, scale.form.format(value), ha="center", va="center", color=color, fontsize=size)
        if framed is not None and framed[i, j]:
            # inside the cell, so that neighbours do not cover it
            frame = Rectangle((j + 0.04, i + 0.06), 0.92, 0.88, facecolor="none", edgecolor=FRAME, linewidth=1.8)
            axes.add_patch(frame)
    return mesh


def color_bar(figure: Figure, mesh: Any, axes: Any, label: str) -> None:
    """A thin colour bar beside the axes."""
    bar = figure.colorbar(mesh, ax=axes, label=label, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)


def footnote(figure: Figure, text: str) -> None:
    """A line under the whole figure, broken where it is too long for it."""
    letters = int(figure.get_figwidth() * LETTERS_AN_INCH)
    figure.supxlabel(textwrap.fill(text, letters), x=0.01, ha="left", fontsize=8)


def heading(figure: Figure, title: str) -> None:
    """A title over the whole figure, where it has one."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)


def two_lines(name: str) -> str:
    """``"layer1 (64 x 32 x 32)"`` on two lines, the second one short."""
    first, bracket, second = name.partition(" (")
    return f"{first}\n({second}".replace(" x ", "\N{MULTIPLICATION SIGN}") if bracket else name


def _contrast(rgba: Array) -> str:
    """Black or white, whichever reads better on a colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def png(figure: Figure) -> bytes:
    """The figure on white."""
    buffer = io.BytesIO()
    # without matplotlib's version inside, equal figures are equal files
    with style():
        figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def pictures(name: str, figure: Figure) -> dict[str, bytes]:
    """The figure as files by name: PNG to look at, SVG and PDF for papers and slides, all of them on white."""
    files = {f"{name}.png": png(figure)}
    # one layout for all three, which is most of the time that a small file takes
    figure.set_layout_engine("none")
    return files | {f"{name}.{kind}": _vector(figure, kind) for kind in ("svg", "pdf")}


def _vector(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    # equal figures are equal files: without the time, and matplotlib's version
    nothing = dict.fromkeys({"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}[kind])
    with style():
        figure.savefig(buffer, format=kind, facecolor="white", dpi=PNG_DPI, metadata=nothing)
    return buffer.getvalue()


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element to stand inside an HTML page.

    Its colours are CSS variables (:func:`css_variables`) with the light ones as fallback, its size is that of the
    element around it, and it refers to nothing outside itself.

    Args:
        figure: what to write.
        name: prefix of its ids, unique in the page.
        description: what a screen reader says.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style():
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text).replace("xlink:href=", "href=")
    for n, color in enumerate(SERIES):
        text = text.replace(color, f"var(--c{n}, {color})")
    text = text.replace(INK, f"var(--ink, {INK})").replace(RULE, f"var(--rule, {RULE})")
    head = f'<svg role="img" aria-label="{_escape(description)}"'
    # a fixed width and height would keep it from fitting its column
    opening = re.sub(r'\s(width|height|xmlns(:\w+)?)="[^"]*"', "", text[: text.index(">") + 1])
    return head + opening[len("<svg") :] + text[text.index(">") + 1 :]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
