"""Heat maps and curves: what is drawn, and what becomes of it in PNG and SVG."""

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from undrawn import drawn

from semckd_kernels.training.report import attention_figures, charts
from semckd_kernels.training.report.attention_bound import at_bound, bound_note, upper_bound
from semckd_kernels.training.report.attention_figures import AttentionHistory


def heat_map(values: np.ndarray, names: list[str] | None = None) -> Figure:
    with charts.style():
        figure = charts.new(4, 3)
        rows = [f"r{n}" for n in range(len(values))]
        columns = names or [f"c{n}" for n in range(values.shape[1])]
        charts.heat_map(figure.add_subplot(), values, rows, columns, charts.Scale(1.0))
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
    with drawn():
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
        assert [line.get_label() for line in axes.lines[:2]] == ["t0", "t1"]
        for m, line in enumerate(axes.lines[:2]):
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


@pytest.mark.parametrize("soft", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("teachers", [2, 3, 7])
def test_no_weight_is_above_its_bound_and_the_best_one_is_there(teachers: int, soft: float) -> None:
    """A softmax of cosines over soft: of all the largest where one is 1 and the others are -1."""
    cosines = torch.full((teachers,), -1.0, dtype=torch.float64)
    cosines[1] = 1.0
    best = torch.softmax(cosines / soft, 0)
    assert upper_bound(teachers, soft) == pytest.approx(float(best[1]), rel=1e-12)
    drawn = torch.softmax((torch.rand(1000, teachers, dtype=torch.float64) * 2 - 1) / soft, 1)
    assert float(drawn.max()) <= upper_bound(teachers, soft)


def test_what_counts_as_being_at_the_bound() -> None:
    e = math.e
    bound, way = e / (e + 2 / e), e / (e + 2 / e) - 1 / 3
    weight = np.array([[bound, 0.1, 0.1], [bound - 0.009 * way, 0.1, 0.1], [bound - 0.02 * way, 0.2, 0.1]])
    assert at_bound(weight, 1.0).tolist() == [[True, False, False], [True, False, False], [False] * 3]
    assert bound_note(weight, 1.0).startswith(f"2 weights are at the upper bound {bound:.3f}: ")
    assert bound_note(weight[:1], 1.0).startswith("1 weight is at the upper bound 0.787: ")
    assert bound_note(weight[2:], 1.0) == ""
    # of an attention that is switched off, or of a single teacher layer, every weight is what it must be
    assert not at_bound(np.full((2, 3), 1 / 3), math.inf).any()
    assert not at_bound(np.ones((2, 1)), 1.0).any()


def test_attention_at_its_bound_says_so() -> None:
    weight = np.array([[0.787, 0.107, 0.106], [0.4, 0.3, 0.3]])
    names = ["s0", "s1"], ["t0", "t1", "t2"]
    figure = attention_figures.heat_map(weight, *names, 6.0)
    frames = [p for p in figure.axes[0].patches if p.get_edgecolor()[:3] == matplotlib.colors.to_rgb(charts.FRAME)]
    assert [(round(p.get_x() - 0.04), round(p.get_y() - 0.06)) for p in frames] == [(0, 0)]
    text = figure.get_supxlabel().replace("\n", " ")
    assert text.startswith("Framed: 1 weight is at the upper bound 0.787: energies are cosines over soft = 1,")
    below = attention_figures.heat_map(weight[1:], names[0][1:], names[1], 6.0)
    assert list(below.axes[0].patches) == []
    assert below.get_supxlabel() == ""
    # with half the temperature it could be larger
    assert attention_figures.heat_map(weight, *names, 6.0, soft=0.5).get_supxlabel() == ""
    curves = attention_figures.curves(AttentionHistory([1, 2], *names, np.stack([weight[::-1], weight])), 4.6)
    lines = [line for axes in curves.axes for line in axes.lines if line.get_label() == "upper bound 0.787"]
    assert [line.get_ydata() for line in lines] == [[upper_bound(3)] * 2] * 2
    assert "upper bound 0.787" in [text.get_text() for text in curves.legends[0].get_texts()]


def test_all_attention_has_one_colour_scale() -> None:
    """Pictures of two runs compare: equal weights have equal colours."""
    for weight in (np.full((2, 3), 1 / 3), np.array([[0.7, 0.2, 0.1]])):
        rows = ["a", "b"][: len(weight)]
        mesh = attention_figures.heat_map(weight, rows, ["x", "y", "z"], 6.0).axes[0].collections[0]
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, 1.0)
    many = attention_figures.curves(history(4, 2, 12), 4.6)
    images = [axes.collections[0] for axes in many.axes if axes.collections and axes.get_title(loc="left")]
    assert [(image.norm.vmin, image.norm.vmax) for image in images] == [(0.0, 1.0)] * 2


def test_a_figure_becomes_three_files() -> None:
    files = charts.pictures("eye", heat_map(np.eye(2)))
    assert list(files) == ["eye.png", "eye.svg", "eye.pdf"]
    assert files["eye.png"].startswith(b"\x89PNG")
    assert ElementTree.fromstring(files["eye.svg"]).tag.endswith("svg")
    assert files["eye.pdf"].startswith(b"%PDF-")
    # fonts that publishers accept
    assert b"/Type3" not in files["eye.pdf"]
    assert files == charts.pictures("eye", heat_map(np.eye(2)))
