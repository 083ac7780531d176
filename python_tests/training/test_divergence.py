"""A run that diverges to finite numbers says so, once, wherever it is looked at; a run that learns never does."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
import training_nets
from training_nets import train

from semckd_kernels.training.loop.divergence import FACTOR, Watch
from semckd_kernels.training.run.folder import RunFolder

COLUMNS = ("loss", "ce", "kd", "semckd")


def watch(beta: float = 400.0) -> Watch:
    return Watch(COLUMNS, {"ce": 1.0, "kd": 1.0, "semckd": beta}, {"semckd": "--beta"})


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_term_and_its_first_absurd_step_are_named() -> None:
    found = watch()
    ordinary = (6.0, 2.0, 2.0, 0.005)
    assert found.losses(0, 0, rows(ordinary, ordinary)) is None
    absurd = (1e9 + 4, 2.0, 2.0, 1e9 / 400)
    text = found.losses(2, 20, rows(ordinary, ordinary, absurd, (1e12, 1e12, 2.0, 1e9)))
    assert text == (
        "the loss term 'semckd' is 2.5e+06 at epoch 3, step 23, and was 0.005 in the first step: the run diverges, a "
        "lower --lr or --beta may help"
    )
    assert found.warnings == [{"kind": "loss", "term": "semckd", "epoch": 3, "step": 23, "message": text}]
    # once
    assert found.losses(3, 0, rows(absurd)) is None
    assert len(found.warnings) == 1


def test_the_largest_part_of_the_loss_is_to_blame() -> None:
    found = watch(beta=50.0)
    found.losses(0, 0, rows((6.0, 2.0, 2.0, 0.04)))
    text = found.losses(0, 1, rows((1e12, 1e6, 1e12, 1e3)))
    assert text is not None
    assert text.startswith("the loss term 'kd' is 1e+12 at epoch 1, step 2, and was 2 in the first step")
    # a sum that is absurd because of no single term
    found = watch()
    found.losses(0, 0, rows((6.0, 2.0, 2.0, 0.005)))
    text = found.losses(0, 1, rows((1e9, 2.0, 2.0, 0.005)))
    assert text is not None
    assert text.startswith("the loss is 1e+09 at epoch 1, step 2, and was 6 in the first step")


@pytest.mark.parametrize(
    "later",
    [
        # large first gradients of fresh projections, and losses that rise by hundreds
        (6000.0, 900.0, 900.0, 3.0),
        # a student that starts as its teacher's copy, or as a perfect classifier, and forgets
        (9.0, 4.0, 4.0, 0.0025),
        # what is not finite has a sentence of its own
        (math.nan, math.nan, 1.0, 1.0),
        (math.inf, 1.0, math.inf, 1.0),
    ],
)
@pytest.mark.parametrize("first", [(6.0, 2.0, 2.0, 0.005), (1e-5, 1e-5, 0.0, 1e-9)])
def test_what_is_no_divergence(first: tuple[float, ...], later: tuple[float, ...]) -> None:
    found = watch()
    found.losses(0, 0, rows(first))
    assert found.losses(0, 1, rows(later)) is None
    assert found.warnings == []


def test_a_term_of_weight_zero_is_no_part_of_the_run() -> None:
    found = Watch(("loss", "ce"), {"ce": 0.0})
    found.losses(0, 0, rows((1.0, 2.0)))
    assert found.losses(0, 1, rows((1.0, 1e12))) is None


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (math.nan, "the test loss is nan after epoch 2, the networks' outputs are not finite: "),
        (math.inf, "the test loss is inf after epoch 2, the networks' outputs are not finite: "),
        (3e12, "the test loss is 3e+12 after epoch 2, far above that of guessing: "),
        (9e3, None),
    ],
)
def test_test_loss(loss: float, reason: str | None) -> None:
    found = watch()
    found.losses(0, 0, rows((6.0, 2.0, 2.0, 0.005)))
    text = found.test_loss(1, loss)
    assert (text is None) == (reason is None)
    assert text is None or text.startswith(reason or "")
    assert found.test_loss(2, loss) is None


def test_parameters() -> None:
    """Networks with BatchNorm keep an ordinary loss while their weights grow."""
    named = [("a", torch.full((3,), 0.5)), ("empty", torch.ones(0)), ("b", torch.full((2,), -2.0))]
    found = watch()
    found.start(named)
    assert found.parameters(0, [("a", torch.full((3,), 1.9 * FACTOR))]) is None
    text = found.parameters(4, [named[0], ("b", torch.tensor([0.0, -3.0 * FACTOR]))])
    assert text is not None
    assert text.startswith("the parameter 'b' holds 3e+04 after epoch 5, and none held more than 2 at the start: ")
    assert found.parameters(5, [("a", torch.full((3,), 1e30))]) is None
    broken = watch()
    broken.start(named)
    assert broken.parameters(0, [("a", torch.tensor([math.nan]))]) is not None


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    """A resumed run compares with the first step of all, and does not warn again."""
    found = watch()
    found.start([("a", torch.ones(1))])
    found.losses(0, 0, rows((6.0, 2.0, 2.0, 0.005)))
    torch.save(found.state(), tmp_path / "state.pt")
    resumed = watch()
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    # what has diverged meanwhile is not taken for ordinary
    resumed.start([("a", torch.full((1,), 1e9))])
    assert resumed.parameters(0, [("a", torch.full((1,), 1e9))]) is not None
    assert resumed.losses(1, 0, rows((1e9, 1e9, 2.0, 0.005))) is not None
    again = watch()
    again.load_state(resumed.state())
    assert again.losses(1, 1, rows((1e9, 1e9, 2.0, 0.005))) is None
    assert again.warnings == resumed.warnings


def test_a_run_that_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--lr", "1000", "--warm-up", "0", "--batch-size", "200", "--epochs", "2", "--log-every", "3"]
    assert train(tmp_path / "run", *flags) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    losses = [line for line in lines if "the loss term 'ce' is " in line]
    assert len(losses) == 1
    run = RunFolder(tmp_path / "run")
    steps = run.steps()
    limit = FACTOR * steps[0]["ce"]
    step = next(row for row in steps if row["ce"] > limit)
    assert f" at epoch {step['epoch']:.0f}, step {step['step']:.0f}, and was " in losses[0]
    messages = [warning["message"] for warning in run.summary["warnings"]]
    assert [f"warning: {message}" for message in messages] == lines
    assert any("the parameter 'student.net." in message for message in messages)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Warnings" in page
    assert all(message.replace("'", "&#39;") in page for message in messages)
    kept = training_nets.state(tmp_path / "run")["watch"]
    assert kept["warnings"] == run.summary["warnings"]


def test_a_run_that_learns_does_not_warn(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # without a warm-up, and with the weight that the preset avoids for its large first gradients
    semckd = ["--teacher-weights", str(teacher), "--method", "semckd", "--beta", "400", "--warm-up", "0"]
    assert train(tmp_path / "run", *semckd, "--epochs", "2") == 0
    assert "warning" not in capsys.readouterr().out
    assert RunFolder(tmp_path / "run").summary["warnings"] == []


def test_a_cell_says_that_its_number_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--epochs", "1", student="breaks_in_evaluation") == 0
    printed = capsys.readouterr().out
    assert "warning: the test loss is nan after epoch 1, the networks' outputs are not finite: " in printed
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        row = next(csv.DictReader(file))
    # a term that the method lacks is empty
    assert (row["test_loss"], row["train_kd"]) == ("nan", "")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<td class="number">not finite</td>') == 1
    assert ">test_loss</th>" in page
