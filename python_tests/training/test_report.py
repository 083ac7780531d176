"""The HTML report of finished runs: its numbers, its structure, and what it leaves out."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_runs import train_all
from undrawn import drawn

from semckd_kernels.training import config, presets
from semckd_kernels.training.report import charts, report
from semckd_kernels.training.report.units import duration
from semckd_kernels.training.run.folder import RunFolder

VOID = {"meta", "br", "img", "link", "input", "hr"}
COLUMNS = ("train_loss", "train_ce", "train_kd", "train_semckd", "test_top1", "test_loss", "student_ms", "criterion_ms")


class Page(HTMLParser):
    """Elements, attributes and text of a page, whose tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    return train_all(tmp_path_factory.mktemp("runs"))


def written(folder: RunFolder) -> str:
    """The report that the engine left."""
    return (folder.path / report.NAME).read_text()


@pytest.fixture(scope="module")
def text(runs: dict[str, RunFolder]) -> str:
    """With all charts."""
    with drawn():
        return report.render(runs["semckd"])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def copied(folder: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(folder.path, path)
    return RunFolder(path)


def test_the_engine_writes_it(runs: dict[str, RunFolder]) -> None:
    for name in ("teacher", "semckd"):
        assert written(runs[name]) == report.render(runs[name])


def test_numbers_of_each_epoch(runs: dict[str, RunFolder], page: Page) -> None:
    with open(runs["semckd"].path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        for name in COLUMNS:
            assert f"{float(row[name]):.6g}" in page.cells, name
    best = max(float(row["test_top1"]) for row in rows)
    assert f"{100 * best:.2f}%" in page.text


def test_it_stands_on_its_own(page: Page, text: str) -> None:
    assert not {"script", "link", "iframe", "img", "object"} & set(page.count)
    # no address but inside the page, and the colour bar's picture is in it
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.values("href"))
    assert "src" not in {name for _, name, _ in page.attributes}
    assert "//" not in re.sub(r'href="data:[^"]*"', "", text)
    assert "@import" not in text


def test_ids_are_unique_and_references_resolve(page: Page, text: str) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", text)) | {x[1:] for x in page.values("href") if x[0] == "#"}
    assert wanted
    assert wanted <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_every_chart_says_what_it_shows(page: Page) -> None:
    assert page.count["svg"] == page.count["figure"] == 6
    labels = page.values("aria-label")
    assert len(labels) == 6
    assert all(len(label) > 30 for label in labels)


def test_colours_follow_the_theme(text: str) -> None:
    charts_only = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    for color in (charts.INK, charts.RULE, *charts.SERIES[:3]):
        assert color in charts_only
        assert not re.findall(rf"(?<!, ){color}", charts_only), f"{color} without a variable"
    for variable in set(re.findall(r"var\((--\w+)", text)):
        # once for light, once for dark, once for print
        assert text.count(f"{variable}:") >= 2, variable


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("teacher", ["Curves", "Where the time goes"]),
        ("kd", ["Curves", "Where the time goes"]),
        ("semckd", ["Curves", "Attention", "Where the time goes"]),
        # one weight, always 1
        ("pair", ["Curves", "Where the time goes"]),
    ],
)
def test_what_a_run_has_is_shown(runs: dict[str, RunFolder], name: str, headings: list[str]) -> None:
    found = Page(written(runs[name]))
    rest = ["Numbers of each epoch", "Environment", "Networks and data", "Configuration"]
    assert found.headings == [name, *headings, *rest]
    assert ("teacher" in found.text.split("Where the time goes")[1].split("Numbers")[0]) is (name != "teacher")


def test_a_single_epoch(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["semckd"], tmp_path / "one")
    for name, rows in (("metrics.csv", 1), ("attention.csv", 6)):
        path = folder.path / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))
    found = Page(report.render(folder))
    assert "Attention, epoch 1" in found.text
    assert "Attention over epochs" not in found.text
    assert "1 epoch, as in metrics.csv" in found.text


def test_missing_columns_and_values(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["semckd"], tmp_path / "less")
    (folder.path / "attention.csv").unlink()
    (folder.path / "metrics.csv").write_text("epoch,train_loss,test_top1,seconds\n1,2.5,,3\n2,nan,0.25,4\n")
    found = Page(report.render(folder))
    assert found.headings[:3] == ["less", "Curves", "Numbers of each epoch"]
    assert "25.00%" in found.text
    assert found.count["svg"] == 2


def test_parts_that_could_not_be_timed(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["kd"], tmp_path / "graph")
    rows = list(csv.DictReader(folder.path.joinpath("metrics.csv").read_text().splitlines()))
    with open(folder.path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        # as a CUDA graph leaves it
        unknown = dict.fromkeys(("teacher_ms", "student_ms", "criterion_ms", "optimizer_ms", "other_ms"), "")
        writer.writerows({**row, **unknown} for row in rows)
    found = Page(report.render(folder))
    assert "Where the time goes" not in found.headings
    assert "of 100 images" in found.text


def test_nothing_trained_yet(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["kd"], tmp_path / "empty")
    path = folder.path / "metrics.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert Page(report.render(folder)).headings == ["empty", "Environment", "Networks and data", "Configuration"]


def test_names_are_text_and_not_markup(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["kd"], tmp_path / "<b>&amp; 'x'")
    found = Page(report.render(folder))
    assert found.headings[0] == "<b>&amp; 'x'"
    assert found.count["b"] == 0


def as_cifar(folder: RunFolder, path: Path, student: str, teacher: str, epochs: int) -> RunFolder:
    """The run's numbers under the name of a CIFAR-100 run."""
    made = copied(folder, path)
    run = config.replace(
        presets.preset("cifar100", student),
        **{"method.name": "semckd", "teacher.name": teacher, "teacher.weights": "file", "recipe.epochs": epochs},
    )
    (made.path / "config.json").write_text(run.to_json())
    return RunFolder(path)


def test_accuracy_beside_the_paper(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = as_cifar(runs["semckd"], tmp_path / "pair", "resnet8x4", "resnet32x4", 240)
    with drawn():
        found = Page(report.render(folder))
    assert {"73.09", "74.42", "76.23", "(75.55)"} <= set(found.cells)
    own = f"{100 * max(row['test_top1'] for row in folder.metrics()):.2f}"
    assert found.cells[found.cells.index("(75.55)") + 1] == own
    assert "below on 6 of 15 pairs" in found.text
    assert "the paper: 76.23%" in found.text
    assert "Not the paper's recipe" not in found.text


def test_another_recipe_and_another_pair_are_said(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    shorter = as_cifar(runs["semckd"], tmp_path / "short", "resnet8x4", "resnet32x4", 2)
    assert "Not the paper's recipe: epochs 2 (the paper: 240)." in Page(report.render(shorter)).text
    unknown = as_cifar(runs["semckd"], tmp_path / "unknown", "resnet8", "resnet110", 240)
    found = Page(report.render(unknown))
    assert "No figure was published for these networks" in found.text
    assert "below on 6 of 15 pairs" in found.text
    assert "the paper:" not in found.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.5e-4, "850 us"),
        (0.99949e-3, "999 us"),
        (0.01234, "12.3 ms"),
        (0.9996, "1.00 s"),
        (3.21, "3.21 s"),
        (11.02, "11.0 s"),
        (59.96, "1 min 0 s"),
        (250.4, "4 min 10 s"),
        (3600.0, "1 h 0 min"),
        (10_500.0, "2 h 55 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_slow_step_is_told_in_seconds(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["semckd"], tmp_path / "slow")
    rows = list(csv.DictReader(folder.path.joinpath("metrics.csv").read_text().splitlines()))
    parts = dict.fromkeys((name for name in rows[0] if name.endswith("_ms")), "0") | {"criterion_ms": "10000"}
    with open(folder.path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, **parts, "student_ms": "1020"} for row in rows)
    with drawn():
        text = Page(report.render(folder)).text
    assert "11.0 s" in text
    assert "A step takes 11.0 s: student 1.02 s, criterion 10.0 s." in text
    assert "seconds a step" in text
    assert "e+0" not in text.split("Numbers of each epoch")[0]


def test_charts_have_units(text: str) -> None:
    labels = ("accuracy in %", "loss", "milliseconds a step", "attention weight", "learning rate")
    for label in labels:
        assert f">{label}" in text, label


def test_analyses_are_linked(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["semckd"], tmp_path / "linked")
    assert "Analyses" not in Page(report.render(folder)).headings
    (folder.path / "analysis").mkdir()
    names = ["attention.png", "attention.svg", "attention.pdf", "attention.csv", "gradcam.json", "notes.txt"]
    for name in names:
        (folder.path / "analysis" / name).write_text("x")
    found = Page(report.render(folder))
    assert "Analyses" in found.headings
    links = [value for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
    assert links == [f"analysis/{name}" for name in names[:-1]]
    assert all(title in found.text for title in ("attention over the test images", "Grad-CAM"))
    assert "mismatch" not in found.text.split("Analyses")[1].split("Numbers of each epoch")[0]


def test_attention_at_its_bound_is_told(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["semckd"], tmp_path / "saturated")
    assert "Framed: " not in Page(report.render(folder)).text
    path = folder.path / "attention.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "weight": 0.787 if n % 3 == 1 else 0.1065} for n, row in enumerate(rows))
    found = Page(report.render(folder)).text
    assert "Framed: 2 weights are at the upper bound 0.787: energies are cosines over soft = 1" in found
    assert "No weight can be above 0.787." in found


def test_warnings_are_in_front(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    folder = copied(runs["kd"], tmp_path / "warned")
    values = folder.summary
    assert values["warnings"] == []
    values["warnings"] = [{"term": "test_loss", "message": "the test loss is nan <b>"}]
    folder.write_summary(values)
    rows = list(csv.DictReader(folder.path.joinpath("metrics.csv").read_text().splitlines()))
    with open(folder.path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "test_loss": "nan"} for row in rows)
    found = Page(report.render(folder))
    assert found.headings[1] == "Warnings"
    assert "the test loss is nan <b>" in found.text
    # the column stays, and its cells say why they hold no number
    assert found.cells.count("not finite") == 2
    assert "Not finite: the number has overflowed" in found.text
