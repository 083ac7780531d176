"""A method of one's own is one record: flags, files, log, report and analyses follow from it."""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import doctest
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import training_nets
from torch import Tensor, nn
from training_nets import make_config, train

from semckd_kernels.analysis import attention, mismatch_runs, runs, single_pairs
from semckd_kernels.cli.commands import main
from semckd_kernels.training import config, methods, paper, preparation
from semckd_kernels.training.loop.divergence import FACTOR
from semckd_kernels.training.methods import CE, METHODS, Given, Layout, Method, MethodConfig, Option, Term, register
from semckd_kernels.training.methods.method import RESERVED
from semckd_kernels.training.methods.standard import KD_TERM, SEMCKD_TERM
from semckd_kernels.training.models import Output
from semckd_kernels.training.report import report
from semckd_kernels.training.run.folder import RunFolder


def squared_error(given: Given) -> Tensor:
    return F.mse_loss(given.student.logits, given.teacher.logits)


WEIGHT = Option("mse_weight", 0.25, "multiply the squared error of the logits by this weight; 100% is 1")
MSE = Term("mse", "squared error", WEIGHT, squared_error)
REGRESSION = Method("regression", "logit regression", "regresses the logits", (CE, MSE))


class Hint(nn.Module):
    """The teacher's last map from the student's."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        (*_, s), (*_, t) = layout.student_shapes, layout.teacher_shapes
        self.regressor = nn.Conv2d(s[0], t[0], 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.regressor(x), y)


HINT = Term(
    "hint",
    "hint",
    Option("hint_weight", 1.0, "multiply the hint by this weight", zero=True),
    lambda given: given.module(given.student.maps[-1], given.teacher.maps[-1]),
    Hint,
    association="position",
)
FITNET = Method("fitnet", "FitNet", "adds a hint to KD", (CE, KD_TERM, HINT), keeps_teacher=True)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    before = dict(METHODS)
    register(REGRESSION)
    register(FITNET)
    yield
    METHODS.clear()
    METHODS.update(before)


def flags(teacher: Path, method: str = "regression") -> list[str]:
    return ["--method", method, "--teacher-weights", str(teacher), "--epochs", "2", "--batch-size", "240"]


@pytest.fixture(scope="module")
def printed_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run by the command line, and what it has printed."""
    out, text = tmp_path_factory.mktemp("regression") / "run", io.StringIO()
    with contextlib.redirect_stdout(text):
        assert train(out, *flags(teacher), "--mse-weight", "2") == 0
    return RunFolder(out), text.getvalue()


@pytest.fixture(scope="module")
def run(printed_run: tuple[RunFolder, str]) -> RunFolder:
    return printed_run[0]


def header(path: Path) -> list[str]:
    with open(path, newline="") as file:
        return next(csv.reader(file))


def test_its_term_is_in_files_log_and_report(printed_run: tuple[RunFolder, str]) -> None:
    run, printed = printed_run
    columns = ["epoch", "lr", "train_loss", "train_ce", "train_kd", "train_semckd", "train_mse", "train_top1"]
    assert header(run.path / "metrics.csv")[:8] == columns
    assert header(run.path / "steps.csv") == ["epoch", "step", "lr", "loss", "ce", "mse"]
    rows = run.metrics()
    assert len(rows) == 2
    for row in rows:
        assert row["train_mse"] > 0
        assert row["train_loss"] == pytest.approx(row["train_ce"] + 2 * row["train_mse"], rel=1e-5)
        # the others' columns are empty
        assert row["train_kd"] != row["train_kd"]
        assert f", mse {row['train_mse']:.4g}, " in printed
    stored = json.loads((run.path / "config.json").read_text())["method"]
    assert (stored["name"], stored["mse_weight"]) == ("regression", 2.0)
    page = (run.path / "report.html").read_text()
    chart = next(
        svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "terms before they are weighted" in svg
    )
    assert f"squared error from {rows[0]['train_mse']:.3g} to {rows[1]['train_mse']:.3g}" in chart
    assert all(
        text in page for text in ("train_mse", "method.mse_weight", ": logit regression", f"{rows[1]['train_mse']:.6g}")
    )
    assert "SemCKD" not in chart


def test_it_may_need_the_teacher_as_it_is(teacher: Path) -> None:
    for name, kept in (("regression", False), ("fitnet", True)):
        found = preparation.prepare(training_nets.semckd(teacher, **{"method.name": name})).teacher
        assert found is not None
        assert (found.prepared is None) == kept


def test_it_resumes_and_is_evaluated(
    teacher: Path, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # in the second epoch
        training_nets.signal_after(patch, signal.SIGTERM, 8)
        assert train(tmp_path / "run", *flags(teacher), "--mse-weight", "2", "--log-every", "1") == 143
    # rows come from the checkpoint
    (tmp_path / "run" / "metrics.csv").unlink()
    assert training_nets.resume(tmp_path / "run") == 0
    training_nets.same_run(tmp_path / "run", run.path)
    capsys.readouterr()
    assert main(["evaluate", str(run.path)]) == 0
    best = run.summary["accuracy"]["best"]["top1"]
    assert f"best: top-1 {best:.2%}" in capsys.readouterr().out
    # finished, and its weight is part of its course
    assert training_nets.resume(run.path) == 0
    assert training_nets.resume(run.path, "--mse-weight", "3") == 2
    assert "--mse-weight was 2 and is now 3" in capsys.readouterr().err


def test_flags_follow(teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert (
        "pair is semckd with one pair of layers, regression regresses the logits, fitnet adds a hint to KD" in printed
    )
    assert (
        "--mse-weight FLOAT multiply the squared error of the logits by this weight; 100% is 1 (default: 0.25)"
        in printed
    )
    name = ["train", "--print-config", "--student", "resnet8", "--device", "cpu"]
    taught = ["--teacher", "resnet20", "--teacher-weights", "teacher.pt"]

    def shown(*words: str) -> Any:
        code = main([*name, *words])
        found = capsys.readouterr()
        return json.loads(found.out)["method"] if code == 0 else found.err.removeprefix("semckd train: ").strip()

    assert shown("--method", "regression", *taught)["mse_weight"] == 0.25
    assert shown("--method", "fitnet", "--hint-weight", "0.5", "--temperature", "3", *taught)["hint_weight"] == 0.5
    # nothing of it is in the configurations of others
    assert list(shown("--method", "kd", *taught)) == [
        f.name for f in dataclasses.fields(MethodConfig) if f.name != "own"
    ]
    assert shown("--method", "kd", "--mse-weight", "2", *taught) == (
        "--mse-weight has no effect with method 'kd': leave it out, or give --method regression"
    )
    assert shown("--method", "regression", "--beta", "2", *taught).startswith("--beta has no effect with method 'regr")
    assert shown("--method", "fitnet", "--temperature", "2", "--kd-weight", "0", *taught) == (
        "--temperature has no effect with --kd-weight 0: leave it out, or give KD a weight"
    )
    assert shown("--method", "regression").startswith("method 'regression' needs a teacher: ")
    assert shown("--method", "fitnet", "--hint-weight", "0", *taught) == (
        "--hint-weight must be above 0 with method 'fitnet', got 0: give a weight, or method 'ce' without a teacher"
    )


def test_a_stored_configuration_is_read_strictly(tmp_path: Path) -> None:
    changes = {"method.name": "regression", "method.mse_weight": 2.0, "teacher.name": "x", "teacher.weights": "y"}
    made = make_config(**changes)
    values = json.loads(made.to_json())
    assert config.from_dict(values) == made
    assert config.flatten(made)["method.mse_weight"] == 2.0
    # a run from before the option
    older = json.loads(made.to_json())
    del older["method"]["mse_weight"]
    assert config.from_dict(older).method.own == {"mse_weight": 0.25}
    # another method drops it
    assert config.replace(made, **{"method.name": "kd"}).to_dict()["method"].keys() == made.to_dict()[
        "method"
    ].keys() - {"mse_weight"}
    for change, message in (
        ({"mse_weight": "much"}, "config.method.mse_weight must be of type float, got 'much'"),
        ({"mse_weight": -1.0}, "method.mse_weight must be a finite number above 0, got -1.0"),
        ({"hint_weight": 1.0}, "config.method.hint_weight is not a field"),
        ({"own": {}}, "config.method.own is not a field"),
        (
            {"name": "unheard_of"},
            "method.name must be one of ce, kd, semckd, equal, pair, regression, fitnet, got 'unh",
        ),
        ({"name": ["kd"]}, "config.method."),
    ):
        broken = {**values, "method": {**values["method"], **change}}
        with pytest.raises(ValueError, match=re.escape(message)):
            config.from_dict(broken)
    with pytest.raises(TypeError, match="mse_wieght"):
        config.replace(made, **{"method.mse_wieght": 2.0})


def test_a_module_of_its_own_trains_and_is_kept(teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.name": "training_nets:wide", "teacher.layers": ("a", "b"), "teacher.weights": str(teacher)}
    trainer = training_nets.make_trainer(
        tmp_path / "run", make_config(**changes, **{"method.name": "fitnet", "recipe.epochs": 1})
    )
    before = trainer.setup.criterion.state_dict()["hint.regressor.weight"].clone()
    trainer.run()
    kept = training_nets.state(tmp_path / "run")["criterion"]["hint.regressor.weight"]
    assert kept.shape == (12, 8, 1, 1)
    assert not torch.equal(kept, before)
    assert [name for name in trainer.folder.metrics()[0] if name.startswith("train_")] == [
        *("train_loss", "train_ce", "train_kd", "train_semckd", "train_hint", "train_top1")
    ]
    # the weight to lower is named
    absurd = torch.tensor([[1e9, 1.0, 1.0, 1e3 * FACTOR]], dtype=torch.float64)
    trainer.watch.first = [1.0, 1.0, 1.0, 1.0]
    assert "the run diverges, a lower --lr or --hint-weight may help" in str(trainer.watch.losses(0, 0, absurd))


def test_analyses_take_it(run: RunFolder, tmp_path: Path) -> None:
    assert runs.titles([run]) == ["logit regression"]
    with pytest.raises(ValueError, match="method 'regression', which has no attention: give a run of 'semckd'"):
        attention.check(run)
    found = json.loads(mismatch_runs.analyze([run]).files["mismatch.json"])["runs"][0]
    assert (found["run"], found["weighting"]) == ("logit regression", "position")
    with pytest.raises(ValueError, match="no attention to weigh with"):
        mismatch_runs.analyze([run], weighting="attention")
    sweep = single_pairs.plan([run], tmp_path, pairs=[(0, 1)], epochs=1)
    assert sweep.configs[0, 1].method == MethodConfig("pair", beta=50.0, pair=(0, 1))


def test_the_report_compares_it_with_the_paper(run: RunFolder) -> None:
    changes = {
        "teacher.name": "resnet32x4",
        "student.name": "resnet8x4",
        "student.layers": None,
        "data.name": "cifar100",
    }
    compared = report.compare(config.replace(run.config, **changes), run.metrics())
    assert compared is not None
    assert [row["name"] for row in compared.rows] == ["student alone", "KD", "SemCKD", "logit regression"]
    assert compared.rows[-1]["this"] == f"{100 * run.summary['accuracy']['best']['top1']:.2f}"
    assert compared.rows[2]["rerun"] == "(75.55)"
    published = paper.find("cifar100", "resnet32x4", "resnet8x4")
    assert published is not None
    assert published.of("regression") is None


def test_rows_of_a_term_that_the_method_has_lost(run: RunFolder, tmp_path: Path) -> None:
    """Files say for themselves which terms they have."""
    path = tmp_path / "metrics.csv"
    path.write_text((run.path / "metrics.csv").read_text().replace("train_mse", "train_older"))
    rows = RunFolder(tmp_path).metrics()
    assert [row["train_older"] for row in rows] == [row["train_mse"] for row in run.metrics()]
    chart = report.report_figures.losses(rows, {})
    assert chart is not None
    assert ", older from " in chart.description


def fresh(method: str = "fresh", /, **term: Any) -> Method:
    return Method(method, "label", "help", (CE, dataclasses.replace(MSE, **term)))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (fresh("kd"), "there is a method 'kd' already"),
        (
            fresh("Fresh one"),
            "a name must be lower-case letters, digits and '_', such as 'mse_weight', got 'Fresh one'",
        ),
        (fresh(name="../mse"), "a name must be lower-case"),
        (fresh(name="top1"), "a term must not be named 'top1', which is taken"),
        (fresh(name="ce"), "terms of method 'fresh' must differ, got the name 'ce' twice"),
        (fresh(label="cross-entropy"), "terms of method 'fresh' must differ, got the label 'cross-entropy' twice"),
        (fresh(weight="mse_weight"), "method 'fresh' uses 'mse_weight', which is neither an option nor one of"),
        (fresh(weight="factor"), "the weight of the term 'mse' must be a float, got 4 by default"),
        (fresh(weight=Option("x", 1, "")), "the weight of the term 'mse' must be a float, got 1 by default"),
        (fresh(weight=Option("beta", 1.0, "")), "there is an option 'beta' already"),
        (fresh(weight=Option("own", 1.0, "")), "there is an option 'own' already"),
        (fresh(weight=Option("hint_weight", 1.0, "another")), "there is an option 'hint_weight' already"),
        (Method("fresh", "label", "help", (MSE,)), "the first term of method 'fresh' must be the cross-entropy 'ce'"),
        (
            Method("fresh", "label", "help", (CE, SEMCKD_TERM, dataclasses.replace(SEMCKD_TERM, name="b", label="b"))),
            "method 'fresh' must have one attention at most",
        ),
    ],
)
def test_records_that_make_no_sense(method: Method, message: str) -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match=re.escape(message)):
        register(method)
    assert before == METHODS


@pytest.mark.parametrize(
    ("default", "message"),
    [
        (0.0, "method.x must be a finite number above 0, got 0.0"),
        (float("nan"), "method.x must be a finite number above 0, got nan"),
        ([1.0], "option 'x' must be a float, int, bool or str, got [1.0]"),
    ],
)
def test_defaults_that_make_no_sense(default: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Option("x", default, "help")


def test_no_term_takes_a_name_of_the_criterion() -> None:
    own = {name for name in dir(methods.build(MethodConfig(), 8)) if name[0] != "_"} - set(dir(nn.Module()))
    assert own <= set(RESERVED)
    with pytest.raises(ValueError, match="a term must not be named 'training'"):
        register(fresh(name="training"))


def test_options_of_every_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = Option("rate", 2, "rate"), Option("sharp", False, "sharp"), Option("norm", "l2", "norm")
    monkeypatch.setitem(METHODS, "fresh", fresh(options=options))
    taught = ["--teacher", "resnet20", "--teacher-weights", "teacher.pt", "--method", "fresh"]
    words = [*taught, "--rate", "3", "--sharp", "--norm", "l1"]
    assert main(["train", "--print-config", "--student", "resnet8", "--device", "cpu", *words]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {name: values["method"][name] for name in ("rate", "sharp", "norm")} == {
        "rate": 3,
        "sharp": True,
        "norm": "l1",
    }
    assert config.from_dict(values).method.own == {"mse_weight": 0.25, "rate": 3, "sharp": True, "norm": "l1"}


def test_what_a_term_computes_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that a record of a step has a place for, and no other."""
    shapes = [torch.Size((2, 4, 4))], [torch.Size((3, 4, 4))]
    student, teacher = (
        Output(torch.randn(4, 3), [torch.randn(4, 2, 4, 4)]),
        Output(torch.randn(4, 3), [torch.randn(4, 3, 4, 4)]),
    )

    def given(**changes: Any) -> methods.Criterion:
        monkeypatch.setitem(
            METHODS, "fresh", Method("fresh", "x", "x", (CE, dataclasses.replace(SEMCKD_TERM, **changes)))
        )
        return methods.build(MethodConfig("fresh"), 4, *shapes)

    labels = torch.zeros(4, dtype=torch.int64)
    assert given()(student, teacher, labels).weight.shape == (4, 1, 1)
    with pytest.raises(ValueError, match="the term 'semckd' must be SemCKD's output, got Tensor"):
        given(compute=squared_error)(student, teacher, labels)
    silent = given(association="position")
    assert silent.attention is None
    with pytest.raises(ValueError, match="the term 'semckd' must be a scalar, got SemCKDOutput"):
        silent(student, teacher, labels)
    with pytest.raises(ValueError, match="the module of the term 'semckd' must be a SemCKD, got Identity"):
        given(build=lambda layout: nn.Identity())


def test_a_term_must_be_a_scalar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "fresh", fresh(compute=lambda given: given.student.logits.square()))
    output = Output(torch.randn(4, 3), [])
    with pytest.raises(ValueError, match=re.escape("the term 'mse' must be a scalar, got shape [4, 3]")):
        methods.build(MethodConfig("fresh"), 4)(output, output, torch.zeros(4, dtype=torch.int64))


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five methods alone."""
    for name in (REGRESSION.name, FITNET.name):
        monkeypatch.delitem(METHODS, name)


@pytest.mark.usefixtures("standard")
def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(methods)
    assert (result.attempted > 4, result.failed) == (True, 0)
    assert list(METHODS) == ["ce", "kd", "semckd", "equal", "pair"]


PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.skipif(not PAGE.exists(), reason="runs in a checkout only")
@pytest.mark.usefixtures("standard")
def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(# distil.py: .*?)```", PAGE.read_text(), re.DOTALL)
    names = {"__name__": "distil"}
    exec(block, names)
    try:
        words = ["--teacher", "resnet20", "--teacher-weights", "teacher.pt", "--method", "regression"]
        words += ["--student", "resnet8", "--device", "cpu", "--mse-weight", "0.5", "--print-config"]
        assert names["main"](["train", *words]) == 0  # type: ignore[operator]
        assert json.loads(capsys.readouterr().out)["method"]["mse_weight"] == 0.5
    finally:
        METHODS.pop("regression", None)


def test_methods_are_below_the_configuration() -> None:
    """What a configuration is checked by knows nothing of it, nor of the networks of the trainer."""
    for path in Path(methods.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                assert (node.level, node.module) in ((3, None), (3, "logits")), f"{path.name}, line {node.lineno}"
