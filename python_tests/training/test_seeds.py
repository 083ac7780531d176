"""``semckd train --seeds``: a folder a seed, each the run that it would be alone; stopped, resumed and refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import training_nets
from training_nets import resume, same_run, train

from semckd_kernels.training.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_report")
FEW = ("--epochs", "1", "--batch-size", "600")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of seeds 3 and 4 by themselves."""
    root = tmp_path_factory.mktemp("alone")
    for seed in (3, 4):
        assert train(root / str(seed), *FEW, "--seed", str(seed), student="dropout") == 0
    return {seed: root / str(seed) for seed in (3, 4)}


def test_each_is_the_run_that_it_would_be_alone(
    alone: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "runs", *FEW, "--seed", "3", "--seeds", "2", student="dropout") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-3", "seed-4"]
    for seed, path in alone.items():
        same_run(path, tmp_path / "runs" / f"seed-{seed}")
    printed = capsys.readouterr().out
    accuracies = [100 * RunFolder(path).summary["accuracy"]["last"]["top1"] for path in alone.values()]
    mean, apart = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1])
    assert f" 2  {mean:.2f} +- {apart / 2**0.5:.2f}" in printed
    assert f"`semckd compare {tmp_path / 'runs'} RUN...`" in printed


def test_stopped_and_resumed(
    alone: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second step of the second seed; the first one is not trained again."""
    out = tmp_path / "runs"
    with monkeypatch.context() as patch:
        training_nets.signal_after(patch, signal.SIGINT, 5)
        assert train(out, *FEW, "--seed", "3", "--seeds", "2", student="dropout") == 130
    assert "stopped at epoch 1, step 2 of 3" in capsys.readouterr().err
    before = (out / "seed-3" / "checkpoints" / "last.pt").stat().st_mtime_ns
    # flags are those of the runs that are there, for one that is not there as well
    assert resume(out, "--seed", "3", "--seeds", "3") == 0
    assert (out / "seed-3" / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    for seed, path in alone.items():
        same_run(path, out / f"seed-{seed}")
    assert RunFolder(out / "seed-5").config.student.name == "training_nets:dropout"
    assert f"the run in '{out / 'seed-3'}' is finished" in capsys.readouterr().out


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # in its eighth step, of which a run has three
    out = tmp_path / "runs"
    assert train(out, "--epochs", "3", "--batch-size", "600", "--seeds", "2", student="breaks_in_step_8") == 1
    printed = capsys.readouterr()
    assert printed.err.count("the loss is not finite") == 2
    assert "not finished: seed 0, 1" in printed.out


def test_all_folders_are_looked_at_first(
    alone: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(alone[4], tmp_path / "runs" / "seed-4")
    assert train(tmp_path / "runs", *FEW, "--seed", "3", "--seeds", "2", student="dropout") == 2
    assert f"'{tmp_path / 'runs' / 'seed-4'}' holds a run already" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "seed-3").exists()
    assert train(tmp_path / "runs", *FEW, "--lr", "0.01", "--seed", "4", "--seeds", "1", "--overwrite") == 0
    assert RunFolder(tmp_path / "runs" / "seed-4").config.recipe.lr == 0.01
    # a run is no folder of runs
    assert train(tmp_path / "runs" / "seed-4", *FEW, "--seeds", "2", "--overwrite") == 2
    assert "is a run itself" in capsys.readouterr().err


def test_the_configuration_shown_is_the_first_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, *FEW, "--seed", "7", "--seeds", "3", "--print-config") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["recipe"]["seed"] == 7
    assert printed.err == "note: this is seed 7 of those up to 9\n"
    assert list(tmp_path.iterdir()) == []
