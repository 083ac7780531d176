"""Files of a run that disagree, or are missing, are made from the checkpoint; what cannot be made is named."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_nets import resume, signal_after, train

from semckd_kernels.cli import commands as cli
from semckd_kernels.training.run import checkpoint
from semckd_kernels.training.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_report")
# the second of three epochs is the best: asserted below
FLAGS = ["--epochs", "3", "--batch-size", "480", "--lr", "1.0", "--seed", "0", "--log-steps"]
STEPS = 3
BEST = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, and one stopped in its last epoch."""
    root = tmp_path_factory.mktemp("runs")
    assert train(root / "whole", *FLAGS) == 0
    assert RunFolder(root / "whole").summary["accuracy"]["best"]["epoch"] == BEST
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 2 * STEPS + 1)
        assert train(root / "stopped", *FLAGS) == 143
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def finished(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["whole"], tmp_path / "finished"))


@pytest.fixture
def stopped(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["stopped"], tmp_path / "stopped"))


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    assert printed.startswith("semckd train: ")
    return printed


def edit(path: Path, **changes: Any) -> None:
    """A checkpoint by another hand, with checksums; None removes a value."""
    values = {**torch.load(path, weights_only=True), **changes}
    torch.save({name: value for name, value in values.items() if value is not None}, path)


@pytest.mark.parametrize(
    "rows",
    [
        # torn: the next row would continue the line
        lambda text: text[:-40],
        # the checkpoint is ahead
        lambda text: text.splitlines(keepends=True)[0],
        lambda text: "",
        # and behind, with a row that is not this run's
        lambda text: text + text.splitlines(keepends=True)[-1].replace("2,", "3,", 1),
    ],
    ids=["torn", "no rows", "empty", "ahead"],
)
@pytest.mark.parametrize("name", ["metrics.csv", "steps.csv"])
def test_rows_are_those_of_the_checkpoint(name: str, rows: Any, runs: dict[str, Path], stopped: Path) -> None:
    (stopped / name).write_text(rows((stopped / name).read_text()))
    assert resume(stopped) == 0
    training_nets.same_run(runs["whole"], stopped)
    assert RunFolder(stopped).summary["accuracy"] == RunFolder(runs["whole"]).summary["accuracy"]


@pytest.mark.parametrize("name", ["report.html", "summary.json", "metrics.csv", "steps.csv"])
def test_what_a_finished_run_lacks_is_made(
    name: str, runs: dict[str, Path], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash between two of the files that end a run."""
    (finished / name).unlink()
    assert resume(finished) == 0
    assert (finished / name).exists()
    training_nets.same_run(runs["whole"], finished)
    if name == "report.html":
        assert "its report is remade" in capsys.readouterr().out
    assert resume(finished) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_report_is_made_anew(runs: dict[str, Path], finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "report.html").unlink()
    assert resume(finished) == 0
    whole = (finished / "report.html").read_text()
    (finished / "report.html").write_text("<html>")
    capsys.readouterr()
    assert cli.main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"Written: {finished / 'report.html'}\n"
    assert (finished / "report.html").read_text() == whole
    (finished / "metrics.csv").write_text((finished / "metrics.csv").read_text().replace("0.1", "0.9"))
    assert cli.main(["report", str(finished)]) == 2
    assert "metrics.csv' is not as the run has written it: `semckd train --resume" in capsys.readouterr().err
    assert cli.main(["report", str(runs["stopped"])]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert cli.main(["report", str(finished.parent)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["finished", "stopped"])
def test_best_copied_over_last_is_a_checkpoint_as_well(
    which: str, runs: dict[str, Path], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = request.getfixturevalue(which)
    shutil.copy(run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt")
    assert resume(run) == 0
    assert f"resumes in epoch {BEST + 1}, after step 0" in capsys.readouterr().out
    training_nets.same_run(runs["whole"], run)


def test_without_last_the_best_checkpoint_resumes(
    runs: dict[str, Path], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "checkpoints" / "last.pt").unlink()
    assert resume(stopped) == 0
    assert "last.pt' is missing: resumes from '" in sentence(capsys)
    training_nets.same_run(runs["whole"], stopped)


@pytest.mark.parametrize("which", ["finished", "stopped"])
def test_without_checkpoints_nothing_begins_anew(
    which: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = request.getfixturevalue(which)
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.csv").read_bytes()
    assert resume(run) == 2
    assert "last.pt' is missing, and best.pt as well" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


def test_a_best_checkpoint_that_cannot_be_made_is_named(
    finished: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (finished, stopped):
        (run / "checkpoints" / "best.pt").unlink()
        capsys.readouterr()
        assert resume(run) == 1
        printed = capsys.readouterr().err
        assert f"the networks of the best epoch so far ({BEST}, top-1 " in printed
        assert "are lost: cannot read checkpoint" in printed


def test_a_best_checkpoint_that_is_the_last_one_is_made(runs: dict[str, Path], stopped: Path) -> None:
    shutil.copy(stopped / "checkpoints" / "best.pt", stopped / "checkpoints" / "last.pt")
    (stopped / "checkpoints" / "best.pt").write_bytes(b"damaged")
    assert resume(stopped) == 0
    training_nets.same_run(runs["whole"], stopped)


def test_last_copied_over_best_is_not_the_best(
    runs: dict[str, Path], stopped: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (stopped, finished):
        shutil.copy(run / "checkpoints" / "last.pt", run / "checkpoints" / "best.pt")
        capsys.readouterr()
        assert cli.main(["evaluate", str(run)]) == 2
        assert f"not of the best epoch {BEST}" in capsys.readouterr().err
        assert resume(run) == 1
        assert f"the networks of the best epoch so far ({BEST}, top-1 " in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    RunFolder(out).create(RunFolder(runs["whole"]).config)
    assert resume(out) == 0
    assert "has no checkpoint yet: starts with its first epoch" in sentence(capsys)
    training_nets.same_run(runs["whole"], out)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": None}, "is not a whole checkpoint: it has no 'optimizer'"),
    ({"student": None}, "does not fit the run: it has no 'student'"),
    ({"config": None}, "is not a checkpoint of a run: it has no 'config'"),
    ({"config": {"format": 1}}, "is not a checkpoint of a run: config.student is missing"),
    ({"student": {"fc.weight": torch.zeros(2, 3)}}, "does not fit the run: Missing key(s) in state_dict"),
    ({"epoch": 99}, "there is no epoch 100"),
    ({"epoch": 1}, "these are not the rows up to the checkpoint"),
    ({"epoch": "two"}, "is not a whole checkpoint: its 'epoch' must be a whole number, got 'two'"),
    ({"history": {}}, "does not fit the run: it has no 'epochs'"),
    ({"ranks": []}, "does not fit the run: list index out of range"),
    (
        {"optimizer": {"state": {}, "param_groups": []}},
        "does not fit the run: loaded state dict has a different number",
    ),
    ({"best": 3}, "does not fit the run: 'int' object is not iterable"),
    ({"format": 7}, "is not a checkpoint of this program in format 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[-30:] for _, message in WRONG])
def test_an_edited_checkpoint(
    changes: dict[str, Any], message: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stopped / "checkpoints" / "last.pt", **changes)
    before = {path: path.read_bytes() for path in stopped.rglob("*.*") if path.name != "semckd.lock"}
    assert resume(stopped) == 2
    assert message in sentence(capsys)
    assert {path: path.read_bytes() for path in before} == before


def test_momentum_of_other_shapes(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which torch would take, and fail or broadcast in the first step."""
    path = stopped / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)["optimizer"]
    state["state"][0]["momentum_buffer"] = torch.zeros(7)
    edit(path, optimizer=state)
    assert resume(stopped) == 2
    assert "the optimizer's state is of parameters of other shapes" in sentence(capsys)


def test_configuration_and_checkpoint_of_two_runs(
    runs: dict[str, Path], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As edited, or with a flipped bit: both commands say where the two differ."""
    stored = (stopped / "config.json").read_text()
    (stopped / "config.json").write_text(stored.replace('"lr": 1.0', '"lr": 3.0'))
    capsys.readouterr()
    assert resume(stopped) == 2
    assert "last.pt' is of a run of another configuration than config.json (--lr 1.0 there, 3.0 here)" in sentence(
        capsys
    )
    assert cli.main(["evaluate", str(stopped)]) == 2
    assert "recipe.lr 1.0 there, 3.0 here" in capsys.readouterr().err
    # the way that the sentence shows
    (stopped / "config.json").unlink()
    assert resume(stopped) == 0
    assert (stopped / "config.json").read_text() == stored
    training_nets.same_run(runs["whole"], stopped)


def test_a_data_folder_may_move(stopped: Path, runs: dict[str, Path]) -> None:
    values = json.loads((stopped / "config.json").read_text())
    values["logging"]["log_every"] = 7
    (stopped / "config.json").write_text(json.dumps(values))
    assert cli.main(["evaluate", str(stopped)]) == 0
    assert resume(stopped) == 0
    training_nets.same_run(runs["whole"], stopped)
    assert RunFolder(stopped).config.logging.log_every == 7


def test_checkpoints_of_before_hold_no_rows(
    runs: dict[str, Path], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stopped / "checkpoints" / "last.pt", history=None)
    torn = Path(shutil.copytree(stopped, stopped.with_name("torn")))
    assert resume(stopped) == 0
    training_nets.same_run(runs["whole"], stopped)
    (torn / "metrics.csv").write_text((torn / "metrics.csv").read_text()[:-5])
    capsys.readouterr()
    assert resume(torn) == 2
    assert "metrics.csv' is damaged: its last line is cut off" in sentence(capsys)


def test_a_summary_of_before_holds_no_checksums(finished: Path) -> None:
    values = json.loads((finished / "summary.json").read_text())
    del values["checksums"]
    (finished / "summary.json").write_text(json.dumps(values))
    assert cli.main(["report", str(finished)]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "it has no accuracy"), ('{"accuracy": 1}', "it has no counts"), ("[" * 100_000, "is not JSON")],
)
def test_what_is_no_summary(content: str, message: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "summary.json").write_text(content)
    assert cli.main(["report", str(finished)]) == 2
    assert message in capsys.readouterr().err
    assert resume(finished) == 0
    assert cli.main(["report", str(finished)]) == 0


def test_checkpoints_have_checksums_whatever_the_process_has_switched_off(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint.save(tmp_path / "last.pt", {"x": torch.ones(3)})
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["x"], torch.ones(3))
