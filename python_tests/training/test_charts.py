"""Heat maps and curves: what is drawn, and what becomes of it in PNG and SVG."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from semckd_kernels.training import attention_figures, charts
from semckd_kernels.training.attention_figures import AttentionHistory


def heat_map(values: np.ndarray, names: list[str] | None = None) -> Figure:
    with charts.style():
        figure = charts.new(4, 3)
        rows = [f"r{n}" for n in range(len(values))]
        columns = names or [f"c{n}" for n in range(values.shape[1])]
        charts.heat_map(figure.add_subplot(), values, rows, columns, low=0.0)
    return figure


def test_cells_say_their_values_in_order() -> None:
    values = np.array([[0.25, 0.75, 1.0], [0.5, 0.125, 0.0]])
    axes = heat_map(values).axes[0]
    drawn = {(round(t.get_position()[1] - 0.5), round(t.get_position()[0] - 0.5)): t for t in axes.texts}
    assert {place: float(text.get_text()) for place, text in drawn.items()} == dict(np.ndenumerate(values))
    # the first row is on top
    assert axes.yaxis_inverted()
    # dark cells have white numbers
    assert drawn[0, 2].get_color() == "white"
    assert drawn[1, 2].get_color() == "black"


def test_a_cell_without_a_value_is_hatched() -> None:
    axes = heat_map(np.array([[0.5, np.nan]])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.500"]
    assert [patch.get_hatch() for patch in axes.patches] == ["///"]


def test_many_columns_have_no_numbers_and_upright_names() -> None:
    axes = heat_map(np.random.default_rng(0).random((2, 12)), [f"blocks.{n} (4 x 4)" for n in range(12)]).axes[0]
    assert len(axes.texts) == 0
    assert axes.get_xticklabels()[3].get_text() == "blocks.3"
    assert axes.get_xticklabels()[3].get_rotation() == 90


@pytest.mark.parametrize(
    ("color", "text"),
    [((1, 1, 1), "black"), ((0, 0, 0), "white"), ((0.4, 0.4, 0.4), "white"), ((0.6, 0.6, 0.6), "black")],
)
def test_numbers_contrast_with_their_cell(color: tuple[float, float, float], text: str) -> None:
    assert charts._contrast(np.array([*color, 1.0])) == text


def test_colors_of_both_themes_stand_out() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    # WCAG 2 asks for 3 of graphics, and 4.5 of text
    for color in charts.SERIES:
        assert 1.05 / (luminance(color) + 0.05) >= 3, color
    page = luminance("#1d2125") + 0.05
    for color in charts.SERIES_DARK:
        assert (luminance(color) + 0.05) / page >= 4.5, color
    assert (luminance(charts.INK_DARK) + 0.05) / page >= 4.5


def test_svg_is_one_element_that_needs_nothing() -> None:
    text = charts.svg(heat_map(np.eye(2)), "eye", 'two by two, "quoted" & <bracketed>')
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == 'two by two, "quoted" & <bracketed>'
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "http" not in text
    assert charts.INK not in re.sub(rf"var\(--ink, {charts.INK}\)", "", text)
    assert all(name.startswith("eye-") for name in re.findall(r' id="([^"]+)"', text))
    # text stays text
    assert "1.000" in "".join(root.itertext())


def test_equal_figures_are_equal_files() -> None:
    first, second = (heat_map(np.eye(3)) for _ in range(2))
    assert charts.png(first) == charts.png(second)
    assert charts.svg(first, "a", "x") == charts.svg(second, "a", "x")
    assert matplotlib.image.imread(io.BytesIO(charts.png(first))).shape == (480, 640, 4)


def history(epochs: int, students: int, teachers: int) -> AttentionHistory:
    weight = np.random.default_rng(0).random((epochs, students, teachers))
    names = [[f"{side}{n} (1 x 1)" for n in range(count)] for side, count in (("s", students), ("t", teachers))]
    return AttentionHistory(list(range(1, epochs + 1)), *names, weight / weight.sum(2, keepdims=True))


def test_attention_over_epochs_is_a_panel_a_student_layer() -> None:
    found = history(4, 3, 2)
    panels = [axes for axes in attention_figures.curves(found, 4.6).axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in panels] == ["student s0", "student s1", "student s2"]
    for n, axes in enumerate(panels):
        assert [line.get_label() for line in axes.lines] == ["t0", "t1"]
        for m, line in enumerate(axes.lines):
            assert line.get_xdata().tolist() == [1, 2, 3, 4]
            assert line.get_ydata().tolist() == found.weight[:, n, m].tolist()


def test_many_teacher_layers_are_an_image() -> None:
    found = history(4, 2, 12)
    panels = [
        axes for axes in attention_figures.curves(found, 4.6).axes if axes.collections and axes.get_title(loc="left")
    ]
    assert len(panels) == 2
    for n, axes in enumerate(panels):
        np.testing.assert_array_equal(axes.collections[0].get_array(), found.weight[:, n].T)


def test_the_strongest_pair() -> None:
    found = history(2, 2, 3)
    best = found.weight[-1].argmax(1)
    text = attention_figures.strongest(found)
    assert f"s0 looks most at t{best[0]} ({found.weight[-1, 0].max():.3f})" in text
    assert f"s1 looks most at t{best[1]} ({found.weight[-1, 1].max():.3f})" in text
