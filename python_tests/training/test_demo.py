"""``semckd demo`` as a user meets it: a quick one, its table and runs, and bad input."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits

from semckd_kernels.cli import commands as cli
from semckd_kernels.cli import demo
from semckd_kernels.training.data import digits
from semckd_kernels.training.report.units import duration
from semckd_kernels.training.run.folder import RunFolder

NETS = {
    "teacher": "resnet20",
    "student": "resnet8",
    "kd": "resnet8",
    "semckd_reference": "resnet8",
    "semckd": "resnet8",
}


class Finished(NamedTuple):
    code: int
    out: Path
    printed: str


def a_third_of_the_digits() -> Any:
    whole = load_digits()
    return SimpleNamespace(images=whole.images[::3], target=whole.target[::3], target_names=whole.target_names)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished quick demo on a third of the digits, over the runs of an earlier one."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    with RunFolder(out / "kd").locked():
        (out / "kd" / "checkpoints").mkdir()
        (out / "kd" / "attention.csv").write_text("of an earlier run")
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    with capture.context() as patch:
        patch.setattr("builtins.print", lambda *args, **options: lines.append(" ".join(map(str, args))))
        patch.setattr(digits, "load_digits", a_third_of_the_digits)
        flags = ["--quick", "--device", "cpu", "--seed", "5", "--batch-size", "67", "--out", str(out)]
        code = cli.main(["demo", *flags])
    return Finished(code, out, "\n".join(lines))


def test_it_prints_a_table(quick: Finished) -> None:
    assert quick.code == 0
    rows = re.findall(r"^(\S.*?) {2,}(resnet\d+) +([\d.]+)% +(\S+ \S+)$", quick.printed, re.MULTILINE)
    titles = [title for title, _, _ in demo.RUNS.values()]
    assert [row[:2] for row in rows] == list(zip(titles, NETS.values(), strict=True))
    for row, name in zip(rows, NETS, strict=True):
        summary = RunFolder(quick.out / name).summary
        assert float(row[2]) == pytest.approx(100 * summary["accuracy"]["last"]["top1"], abs=0.051)
        assert row[3] == duration(sum(summary["step_ms"].values()) / 1e3)
    assert "Accuracy differences at this size are noise" in quick.printed
    assert "first 2 steps agree" in quick.printed
    assert "The attention gives layer" in quick.printed


def test_every_run_is_an_ordinary_one(quick: Finished) -> None:
    for name, net in NETS.items():
        run = RunFolder(quick.out / name)
        assert run.is_finished
        assert run.config.student.name == net
        assert (run.config.recipe.seed, run.config.recipe.batch_size, run.config.recipe.epochs) == (5, 67, 1)
        # 479 samples: 7 batches of 67 and one of 10
        assert len(run.steps()) == 8
        assert (run.attention() is not None) == name.startswith("semckd")
    assert RunFolder(quick.out / "semckd_reference").config.method.backend == "reference"


def test_students_start_from_the_same_parameters(quick: Finished) -> None:
    """The first step's cross-entropy is that of fresh parameters."""
    first = {name: RunFolder(quick.out / name).steps()[0]["ce"] for name in NETS}
    assert first["student"] == first["kd"] == first["semckd"] == first["semckd_reference"] != first["teacher"]


def test_students_learn_from_the_run_of_the_teacher(quick: Finished) -> None:
    loaded = RunFolder(quick.out / "semckd").load()
    stored = torch.load(quick.out / "teacher" / "checkpoints" / "best.pt", weights_only=True)["student"]
    assert loaded.teacher is not None
    assert all(torch.equal(value, stored[name]) for name, value in loaded.teacher.net.state_dict().items())


def test_compare_by_hand() -> None:
    agreement = demo.compare([1.0, 2.0, 4.0], [1.0, 2.0 - 1e-5, 3.0])
    assert agreement.first_steps == pytest.approx(5e-6)
    assert agreement.all_steps == pytest.approx(0.25)
    assert agreement.holds
    assert not demo.compare([1.0, float("nan")], [1.0, 1.0]).holds


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1 to 10000, got '0'"),
        (["--batch-size", "1438"], "--batch-size must be at most 1437"),
        (["--device", "toaster"], "device 'toaster' cannot be used: "),
        (["--backend", "abacus"], "--backend must be one of "),
        (["--backend", "cuda"], "backend 'cuda' cannot serve cpu tensors: "),
        (["--speed", "11"], "there is no flag --speed: did you mean --seed?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main(["demo", "--device", "cpu", "--out", str(tmp_path / "new" / "folder"), *flags])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
