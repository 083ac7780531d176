"""The picture of the README: a training step by plain KD, by the reference and by ours, from stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .results import Row

SHAPE, DTYPE, LAYOUT = "resnet32x4-resnet8x4", "fp32", "nchw"
SCHEMES = {
    "light": {"text": "#1f2328", "faint": "#59636e", "KD": "#9aa4b2", "reference": "#d1495b", "ours": "#2d6cdf"},
    "dark": {"text": "#e6edf3", "faint": "#9198a1", "KD": "#6e7681", "reference": "#e06c75", "ours": "#58a6ff"},
}
NAMES = {"KD": "plain KD", "reference": "SemCKD, plain PyTorch", "ours": "SemCKD, semckd_kernels"}
WIDTH, LEFT, BAR, GAP, TOP = 800, 190, 22, 18, 56
# bars end here, so that the figure behind the longest one fits
LONGEST = WIDTH - LEFT - 150


class Bar(NamedTuple):
    """One step's time on one machine."""

    machine: str
    name: str  # a key of NAMES
    ms: float
    over_kd: float


def bars(rows: Iterable[Row], machine_of: Callable[[Row], str]) -> list[Bar]:
    """Three bars a machine: those on which all three were measured."""
    found: dict[str, dict[str, Bar]] = {}
    for row in rows:
        if (row.shape, row.dtype, row.layout) == (SHAPE, DTYPE, LAYOUT):
            name = row.backend if row.backend in NAMES else "ours"
            bar = Bar(machine_of(row), name, row.p50_ms, row.over_kd or 1.0)
            found.setdefault(bar.machine, {})[name] = bar
    return [group[name] for group in found.values() if len(group) == len(NAMES) for name in NAMES]


def draw(found: list[Bar], scheme: str) -> str:
    """The picture as SVG; a machine's bars are scaled to its own plain KD step."""
    colour = SCHEMES[scheme]
    longest = max((bar.over_kd for bar in found), default=1.0)
    lines, y = [], TOP
    for n, bar in enumerate(found):
        if n % len(NAMES) == 0:
            y += GAP if n else 0
            lines.append(_text(LEFT - 14, y + 1.5 * BAR + 5, bar.machine, colour["text"], "end", 600))
        width = bar.over_kd / longest * LONGEST
        lines.append(
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 4}" rx="3" fill="{colour[bar.name]}"/>'
        )
        figure = f"{bar.over_kd:.2f} x" if bar.name != "KD" else "1 x"
        said = f"{figure}, {bar.ms / 1e3:.2f} s"
        lines.append(_text(LEFT + width + 8, y + BAR - 9, said, colour["faint"]))
        y += BAR
    legend, x = [], 16.0
    for name, label in NAMES.items():
        legend.append(f'<rect x="{x:.0f}" y="32" width="12" height="12" rx="2" fill="{colour[name]}"/>')
        legend.append(_text(x + 18, 43, label, colour["text"]))
        x += 40 + 7.2 * len(label)
    title = "One training step, ResNet-32x4 to ResNet-8x4, batch 64, fp32: times of a plain KD step"
    body = "\n".join([_text(16, 18, title, colour["text"], weight=600), *legend, *lines])
    size = f'width="{WIDTH}" height="{y + 10}" viewBox="0 0 {WIDTH} {y + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">\n{body}\n</svg>\n'


def _text(x: float, y: float, said: str, fill: str, anchor: str = "start", weight: int = 400) -> str:
    style = f'font-family="system-ui, sans-serif" font-size="13" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style} fill="{fill}">{said}</text>'
