"""``semckd demo`` as a user meets it: a quick one, its comparison and runs, and bad input."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from undrawn import undrawn

from semckd_kernels.cli import commands as cli
from semckd_kernels.cli import demo, first_steps
from semckd_kernels.training.data import digits
from semckd_kernels.training.report import report
from semckd_kernels.training.run.folder import RunFolder

SEEDS = (5, 6)


class Finished(NamedTuple):
    code: int
    out: Path
    printed: str

    def run(self, method: str, seed: int = SEEDS[0]) -> RunFolder:
        return RunFolder(self.out / method / f"seed-{seed}")


def a_third_of_the_digits() -> Any:
    whole = load_digits()
    return SimpleNamespace(images=whole.images[::3], target=whole.target[::3], target_names=whole.target_names)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished quick demo on a third of the digits, over the runs of an earlier one; its reports have no charts."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    earlier = out / "kd" / "seed-5"
    with RunFolder(earlier).locked():
        (earlier / "checkpoints").mkdir()
        (earlier / "attention.csv").write_text("of an earlier run")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, undrawn(pictures=True):
        patch.setattr("builtins.print", lambda *args, **options: lines.append(" ".join(map(str, args))))
        patch.setattr(digits, "load_digits", a_third_of_the_digits)
        patch.setattr(report, "render", lambda folder: "<html></html>")
        flags = ["--quick", "--device", "cpu", "--seed", "5", "--batch-size", "23", "--out", str(out)]
        code = cli.main(["demo", *flags])
    return Finished(code, out, "\n".join(lines))


def test_it_ends_with_the_comparison(quick: Finished) -> None:
    assert quick.code == 0
    rows = re.findall(r"^(\S.*?) {2,}2  +([\d.]+ \+- [\d.]+)  .* (?:ms|s)$", quick.printed, re.MULTILINE)
    assert [label for label, _ in rows] == ["student alone", "KD", "SemCKD"]
    for (_, cell), method in zip(rows, demo.METHODS, strict=True):
        accuracies = [100 * quick.run(method, seed).summary["accuracy"]["last"]["top1"] for seed in SEEDS]
        assert cell == f"{statistics.fmean(accuracies):.2f} +- {statistics.stdev(accuracies):.2f}"
    assert len(re.findall("^(?:Within|Beyond) noise: .* \\(2 seeds in pairs\\).$", quick.printed, re.MULTILINE)) == 3
    page = (quick.out / "comparison" / "comparison.html").read_text()
    assert 'href="../semckd/seed-5/analysis/attention.png"' in page
    assert quick.printed.endswith(f"the comparison: {quick.out / 'comparison' / 'comparison.html'}")


def test_it_says_what_it_has_seen(quick: Finished) -> None:
    assert "run 1 of 7: resnet20, the teacher, 479 images: " in quick.printed
    assert "run 4 of 7: resnet8, SemCKD, seed 6, 47 images: " in quick.printed
    assert "Each student has seen 47 labelled images" in quick.printed
    assert "first 2 steps agree" in quick.printed
    assert re.search(
        r"A step of 23 images takes [\d.]+ m?s by the reference and [\d.]+ m?s by our kernels", quick.printed
    )
    assert "The attention gives layer" in quick.printed


def test_every_run_is_an_ordinary_one(quick: Finished) -> None:
    for method in demo.METHODS:
        for seed in SEEDS:
            run = quick.run(method, seed)
            assert run.is_finished
            assert (run.config.student.name, run.config.data.train_fraction) == ("resnet8", 0.1)
            assert (run.config.recipe.seed, run.config.recipe.batch_size, run.config.recipe.epochs) == (seed, 23, 1)
            # 47 images: two batches of 23 and one of 1
            assert len(run.steps()) == 3
            assert (run.attention() is not None) == (method == "semckd")
    teacher = RunFolder(quick.out / "teacher")
    assert teacher.config.student.name == "resnet20"
    assert teacher.summary["counts"]["train_images"] == 479


def test_students_of_a_seed_start_alike(quick: Finished) -> None:
    """The first step's cross-entropy is that of fresh parameters on images of the seed's own draw."""
    first = {(method, seed): quick.run(method, seed).steps()[0]["ce"] for method in demo.METHODS for seed in SEEDS}
    assert len({first[method, 5] for method in demo.METHODS}) == 1
    assert first["kd", 5] != first["kd", 6]


def test_students_learn_from_the_run_of_the_teacher(quick: Finished) -> None:
    """Its network is prepared, so that its parameters are others, but what it says of images is the same."""
    taught, teacher = quick.run("semckd").load(), RunFolder(quick.out / "teacher").load()
    images = teacher.data.test_images(range(8)).images
    assert taught.teacher is not None
    with torch.no_grad():
        torch.testing.assert_close(taught.teacher(images).logits, teacher.student(images).logits)


def test_the_compared_steps_are_those_of_the_run(quick: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "load_digits", a_third_of_the_digits)
    run = quick.run("semckd")
    assert [step.loss for step in first_steps.steps(run.config)] == [row["loss"] for row in run.steps()]


def test_compare_by_hand() -> None:
    agreement = first_steps.compare([1.0, 2.0, 4.0], [1.0, 2.0 - 1e-5, 3.0])
    assert agreement.first_steps == pytest.approx(5e-6)
    assert agreement.all_steps == pytest.approx(0.25)
    assert agreement.holds
    assert not first_steps.compare([1.0, float("nan")], [1.0, 1.0]).holds


def test_a_run_in_the_way_is_left_alone(quick: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as that of an earlier version's demo."""
    config = tmp_path / "kd" / "config.json"
    config.parent.mkdir()
    config.write_text((quick.run("kd").path / "config.json").read_text())
    assert cli.main(["demo", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert f"'{tmp_path / 'kd'}' is a run itself" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["kd", "config.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1 to 10000, got '0'"),
        (["--batch-size", "144"], "--batch-size must be at most 143"),
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
