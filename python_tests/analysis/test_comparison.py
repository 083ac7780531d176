"""``semckd compare``: the statistics by hand, the rows that runs fall into, and the files of runs that exist."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace as with_fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from semckd_kernels.analysis.comparison import comparison, groups, page, statistics, tables
from semckd_kernels.analysis.comparison.groups import Group
from semckd_kernels.analysis.comparison.runs import Run, comparable, find
from semckd_kernels.cli import commands as cli
from semckd_kernels.training import config
from semckd_kernels.training.run.folder import RunFolder

IMAGES = 10_000


def stored(run: RunFolder) -> Run:
    return Run(run, run.config, run.summary)


def changed(run: Run, top1: float | None = None, name: str = "", **values: object) -> Run:
    """A run of another configuration and accuracy, in a folder that need not exist."""
    summary = json.loads(json.dumps(run.summary))
    if top1 is not None:
        for epoch in ("last", "best"):
            summary["accuracy"][epoch]["top1"] = top1
    path = Path(name) if name else run.folder.path
    return Run(RunFolder(path), config.replace(run.config, **values), summary)


def test_pairs_of_seeds_by_hand() -> None:
    a, b = {0: 0.90, 1: 0.92, 2: 0.97, 7: 0.10}, {2: 0.94, 1: 0.90, 0: 0.89}
    found = statistics.difference(a, b, IMAGES)
    # 1, 2 and 3 points; t of two degrees of freedom at 97.5% is 4.3027
    assert (found.n, found.paired) == (3, True)
    assert found.mean == pytest.approx(0.02)
    assert found.error == pytest.approx(0.01 / 3**0.5)
    assert found.high - found.mean == pytest.approx(4.302653 * found.error, rel=1e-6)
    assert found.verdict == "within noise"
    assert statistics.difference({s: v + 0.01 for s, v in a.items()}, b, IMAGES).verdict == "beyond noise"
    back = statistics.difference(b, a, IMAGES)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_other_seeds_by_hand() -> None:
    """Welch: variances 1e-4 and 4e-4 of three and two seeds."""
    a, b = {0: 0.90, 1: 0.91, 2: 0.92}, {5: 0.80, 6: 0.80 + 0.02 * 2**0.5}
    found = statistics.difference(a, b, IMAGES)
    parts = 1e-4 / 3, 4e-4 / 2
    assert not found.paired
    assert found.error == pytest.approx(sum(parts) ** 0.5)
    # 1.34 degrees of freedom: t lies between its values for one and for two
    assert 4.303 < (found.high - found.mean) / found.error < 12.706
    same = statistics.difference(a, {n + 9: value for n, value in a.items()}, IMAGES)
    # equal variances and sizes: 4 degrees of freedom
    assert same.high == pytest.approx(2.776445 * (2e-4 / 3) ** 0.5, rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        draws = generator.normal(0.02, 0.01, 5)
        found = statistics.difference(dict(enumerate(draws)), dict.fromkeys(range(5), 0.0), IMAGES)
        held += found.low <= 0.02 <= found.high
    # a standard error of 0.7%
    assert 0.93 < held / 1000 < 0.97


def test_one_seed_says_nothing_and_equal_seeds_not_everything() -> None:
    found = statistics.difference({0: 0.9}, {0: 0.5, 1: 0.4}, IMAGES)
    assert found.verdict == "nothing can be said"
    assert found.mean == pytest.approx(0.45)
    # two seeds that differ by the same one image of 100: rounding alone could do that
    assert statistics.difference({0: 0.90, 1: 0.91}, {0: 0.89, 1: 0.90}, 100).verdict == "within noise"
    with pytest.raises(ValueError, match="one number at least"):
        statistics.spread([])


def test_rows_differ_by_more_than_the_seed(runs: dict[str, RunFolder]) -> None:
    kd, alone, pair = stored(runs["kd"]), stored(runs["ce"]), stored(runs["pair"])
    given = [
        changed(kd, name="b", **{"recipe.seed": 3}),
        pair,
        changed(kd, name="c", **{"method.kd_standardize": True}),
        # what the student alone ignores, and what moves no accuracy
        changed(alone, name="d", **{"recipe.seed": 1, "method.temperature": 9.0, "logging.log_every": 7}),
        kd,
        alone,
        changed(kd, name="e", **{"method.temperature": 2.0}),
        changed(kd, name="f"),
    ]
    found, repeated = groups.group(given)
    assert [(row.label, row.seeds) for row in found] == [
        ("student alone", (0, 1)),
        ("KD, temperature 2", (0,)),
        ("KD, temperature 4", (0, 3)),
        ("KD, standardized logits, temperature 4", (0,)),
        ("one pair, layers 1 and 2, temperature 4", (0,)),
    ]
    assert [str(other.path) for other in repeated] == ["f"]
    assert str(kd.folder.path) in repeated[0].reason


def test_only_one_student_on_one_data_set(runs: dict[str, RunFolder]) -> None:
    kd = stored(runs["kd"])
    larger = changed(kd, name="larger", **{"student.name": "resnet8"})
    other = changed(kd, name="other", **{"data.name": "cifar100"})
    kept, others = comparable([larger, stored(runs["teacher"]), kd, other, stored(runs["semckd"])])
    assert [run.config.method.name for run in kept] == ["kd", "semckd"]
    # the teacher of the others is no surprise
    assert [(str(path), reason) for path, reason in others] == [
        ("larger", "student resnet8, not tiny_runs:student"),
        ("other", "data set cifar100, not digits"),
    ]


@pytest.fixture(scope="module")
def folder(runs: dict[str, RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of runs, one unfinished, one repeated, and the files of their comparison."""
    root = tmp_path_factory.mktemp("compared")
    for name in ("ce", "kd", "semckd"):
        shutil.copytree(runs[name].path, root / name / "seed-0", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(root / "kd" / "seed-0", root / "kd" / "twice")
    (root / "half").mkdir()
    shutil.copy(runs["kd"].path / "config.json", root / "half")
    (root / "semckd" / "seed-0" / "analysis").mkdir()
    (root / "semckd" / "seed-0" / "analysis" / "attention.png").write_bytes(b"")
    return root


def test_the_command(folder: Path, runs: dict[str, RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(folder)]) == 0
    printed = capsys.readouterr().out
    out = folder / "comparison"
    assert (
        f"Left out: '{folder / 'half'}' (not finished); '{folder / 'kd' / 'twice'}' (configuration and seed" in printed
    )
    assert "Nothing can be said from one seed of student alone; KD; SemCKD." in printed
    with open(out / "comparison.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["student alone", "KD", "SemCKD"]
    for line, name in zip(lines, ("ce", "kd", "semckd"), strict=True):
        accuracy = runs[name].summary["accuracy"]
        assert float(line["last_top1"]) == accuracy["last"]["top1"]
        assert float(line["best_top1"]) == accuracy["best"]["top1"]
        assert float(line["step_ms"]) == pytest.approx(sum(runs[name].summary["step_ms"].values()))
        assert f"{100 * accuracy['last']['top1']:.2f}" in printed
    text = (out / "comparison.html").read_text()
    links = Links()
    links.feed(text)
    assert links.titles == ["Accuracy of each seed", "Accuracy over epochs", "Attention: SemCKD"]
    inside = [link for link in links.found if not link.startswith(("#", "data:"))]
    assert "../semckd/seed-0/analysis/attention.png" in inside
    assert all((out / link).exists() for link in inside)
    assert len(links.ids) == len(set(links.ids))
    # nothing is read from it that was not there before
    assert find([folder]) == [path for path in find([folder]) if "comparison" not in path.parts]


class Links(HTMLParser):
    """Addresses, ids and captions of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.caption = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.caption = tag == "figcaption"
        values = dict(attrs)
        self.found += [values["href"] or ""] if "href" in values else []
        self.ids += [values["id"] or ""] if "id" in values else []

    def handle_data(self, data: str) -> None:
        if self.caption and data.strip():
            self.titles.append(data)


@pytest.fixture
def several(runs: dict[str, RunFolder]) -> comparison.Comparison:
    """Three seeds of three methods, of which the last two are within noise of each other."""
    accuracies = {"ce": (0.90, 0.91, 0.92), "kd": (0.97, 0.96, 0.98), "semckd": (0.96, 0.98, 0.98)}
    rows = [
        Group(
            stored(runs[name]).config.method.record.label,
            tuple(changed(stored(runs[name]), top1, **{"recipe.seed": n}) for n, top1 in enumerate(values)),
        )
        for name, values in accuracies.items()
    ]
    return comparison.Comparison(tables.rows(rows), tables.differences(rows, "last"), [], [], "last")


def test_verdicts_in_words_csv_and_latex(several: comparison.Comparison) -> None:
    lines = tables.sentences(several.differences, "last")
    assert lines[0] == (
        "Beyond noise: KD - student alone +6.00, standard error 0.58, interval +3.52 to +8.48 (3 seeds in pairs)."
    )
    assert lines[2].startswith("Within noise: SemCKD - KD +0.33, ")
    assert "of 3 differences, one in twenty" in lines[3]
    files = several.files()
    read = list(csv.DictReader(io.StringIO(files["comparison_differences.csv"].decode())))
    assert [line["verdict"] for line in read] == ["beyond noise", "beyond noise", "within noise"]
    tex = files["comparison.tex"].decode()
    assert r"student alone & 3 & 91.00 $\pm$ 1.00 & 91.00 $\pm$ 1.00 &" in tex
    assert r"KD & 3 & \textbf{97.00 $\pm$ 1.00} &" in tex
    assert r"SemCKD & 3 & \textbf{97.33 $\pm$ 1.15} &" in tex
    assert tables.escape("a_b & 5% #1 {x} ^") == r"a\_b \& 5\% \#1 \{x\} \textasciicircum{}"


def test_the_page_says_what_is_within_noise(several: comparison.Comparison, tmp_path: Path) -> None:
    text = page.render(several, tmp_path)
    assert text.count('<tr class="this">') == 2 + 2
    for part in ("97.33%", "\N{PLUS-MINUS SIGN} 1.15, 3 seeds", "within noise", "beyond noise", ">Differences<"):
        assert part in text


def test_the_paper_stands_beside_its_pairs(several: comparison.Comparison) -> None:
    """And so does whatever differs from its recipe."""
    names = {"data.name": "cifar100", "student.name": "resnet8x4", "student.layers": None}
    kd = several.groups[1]
    runs = tuple(changed(run, **names, **{"teacher.name": "resnet32x4", "teacher.layers": None}) for run in kd.runs)
    published = with_fields(several, rows=tables.rows([Group("KD", runs)]), differences=[])
    assert tables.columns(published.rows)["the paper, %"] == ["74.42"]
    assert any(note.startswith("KD: not the paper's recipe: epochs 2 (the paper: 240)") for note in published.notes)
    assert "nothing to compare it with" in published.summary


def test_costs_of_a_step(several: comparison.Comparison) -> None:
    """Medians over seeds; inside a CUDA graph a step has no parts, and a CPU no memory of its own."""
    first, *others = several.groups[1].runs
    graphed = json.loads(json.dumps(first.summary))
    graphed |= {"step_ms": dict.fromkeys(graphed["step_ms"]), "images_per_second": 2000.0, "peak_memory_mb": 1500.0}
    graphed["environment"]["device"] = "a GPU"
    run = Run(first.folder, first.config, graphed)
    # 100 images at 2,000 a second
    assert run.step_ms == pytest.approx(50.0)
    row, mixed = tables.rows([Group("graphed", (run,)), Group("mixed", (run, *others))])
    assert (row.memory_mb, mixed.memory_mb) == (1500.0, None)
    cells = tables.columns([row, mixed])
    assert (cells["a step"][0], cells["memory"]) == ("50.0 ms", ["1.50 GB", "-"])
    notes = with_fields(several, rows=[row, mixed]).notes
    assert any(note.startswith("Times of a step do not compare: they are of ") for note in notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "is not a folder: give folders of runs"),
        (lambda path: path, "holds no run: give folders of runs, or a folder that holds some"),
    ],
)
def test_bad_input(make: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(make)
    assert cli.main(["compare", str(make(tmp_path))]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert message in printed.err


def test_nothing_is_finished(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(folder / "half"), "--out", str(tmp_path / "out")]) == 2
    assert "no run is finished. Left out: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
