"""A run that is stopped anywhere and resumes is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training_nets
from training_nets import LAYERS, resume, signal_after, train

from semckd_kernels.training.run.folder import RunFolder

FLAGS = ["--epochs", "2", "--batch-size", "100", "--log-every", "4"]
STEPS = 15


@pytest.fixture(scope="module")
def method(teacher: Path) -> list[str]:
    """SemCKD, which has state of its own."""
    return ["--teacher-weights", str(teacher), "--method", "semckd"]


@pytest.fixture(scope="module")
def whole(method: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped, of a student that draws random numbers."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(out, *FLAGS, *method, student="dropout") == 0
    return out


# the first step, between two fetches, at one, the last of an epoch, the first of the next
@pytest.mark.parametrize("steps", [1, 7, 8, STEPS, STEPS + 1])
def test_resumed_after_a_signal(
    steps: int,
    whole: Path,
    method: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    number, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[steps % 2]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_after(patch, number, steps)
        assert train(out, *FLAGS, *method, student="dropout") == code
    assert signal.getsignal(number) == before
    printed = capsys.readouterr().err
    epoch, step = divmod(steps - 1, STEPS)
    assert f"stopped at epoch {epoch + 1}, step {step + 1} of {STEPS}" in printed
    assert printed.count("\n") == 1
    assert (training_nets.state(out)["epoch"], training_nets.state(out)["step"]) == (epoch, step + 1)
    assert not RunFolder(out).is_finished
    assert resume(out) == 0
    assert f"resumes in epoch {epoch + 1}, after step {step + 1}\n" in capsys.readouterr().out
    training_nets.same_run(whole, out)


def test_resumed_twice_with_the_whole_command_and_another_interval(
    whole: Path, method: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, command = tmp_path / "run", [*FLAGS, *method]
    for steps in (5, 12):
        with monkeypatch.context() as patch:
            signal_after(patch, signal.SIGTERM, steps)
            assert train(out, *command, "--resume", student="dropout") == 143
    assert train(out, *command, "--resume", "--log-every", "100", student="dropout") == 0
    training_nets.same_run(whole, out)


def test_rows_after_the_checkpoint_are_cut_off(
    whole: Path, method: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after an epoch's rows and before its checkpoint: the rows come a second time."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 12)
        assert train(out, *FLAGS, *method, student="dropout") == 143
    for name in ("metrics.csv", "attention.csv", "steps.csv"):
        # the last line half written
        (out / name).write_text((whole / name).read_text()[:-3])
    assert resume(out) == 0
    training_nets.same_run(whole, out)


def test_killed_in_mid_epoch(whole: Path, method: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    name = ["--student", "training_nets:dropout", *LAYERS, "--device", "cpu", "--no-tensorboard"]
    command = [sys.executable, "-m", "semckd_kernels.cli", "train", *name, *FLAGS, *method, "--out", str(out)]
    path = os.pathsep.join([str(Path(training_nets.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [*command, "--checkpoint-every", "3"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 300
        while not (out / "checkpoints" / "last.pt").exists():
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    state = training_nets.state(out)
    assert (state["epoch"], state["step"]) < (1, STEPS)
    assert state["step"] % STEPS, "killed too late: not in mid-epoch"
    assert resume(out, "--checkpoint-every", "1000") == 0
    training_nets.same_run(whole, out)


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--lr", "0.1"], "--lr was 0.05 and is now 0.1"),
        (["--seed", "1", "--beta", "7"], "--beta was 50 and is now 7; --seed was 0 and is now 1"),
        (["--student-layers", "b"], "--student-layers was a,b and is now b"),
        # the cosine's learning rates depend on the number of epochs
        (["--epochs", "3"], "--epochs was 2 and is now 3"),
        (["--preset", "digits"], "--epochs was 2 and is now 10"),
        (["--threads", "2"], "--threads was 1 and is now 2"),
    ],
)
def test_another_configuration_is_refused(
    flags: list[str], change: str, whole: Path, method: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    everything = ["--student", "training_nets:dropout", *LAYERS, *method] if "--preset" in flags else []
    assert resume(tmp_path / "run", *everything, *flags) == 2
    printed = capsys.readouterr().err
    assert f"the run in '{tmp_path / 'run'}' cannot be resumed with another configuration: " in printed
    assert change in printed
    assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_more_epochs_where_learning_rates_do_not_depend_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = ["--batch-size", "100", "--schedule", "step", "--milestones", "1", "--warm-up", "0"]
    assert train(tmp_path / "short", "--epochs", "2", *step) == 0
    assert resume(tmp_path / "short", "--epochs", "3") == 0
    assert train(tmp_path / "long", "--epochs", "3", *step) == 0
    stored = json.loads((tmp_path / "short" / "config.json").read_text())
    assert stored["recipe"]["epochs"] == 3
    rows = [RunFolder(tmp_path / name).metrics() for name in ("short", "long")]
    for short, long in zip(*rows, strict=True):
        assert [short[name] for name in ("lr", "train_loss", "test_top1")] == [
            long[name] for name in ("lr", "train_loss", "test_top1")
        ]
    assert rows[0][2]["lr"] == pytest.approx(0.005)
    names = ("student", "optimizer")
    a, b = (training_nets.state(tmp_path / name) for name in ("short", "long"))
    assert training_nets.differences({n: a[n] for n in names}, {n: b[n] for n in names}) == []
    assert resume(tmp_path / "short", "--epochs", "2") == 2


def test_a_finished_run_says_so(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "checkpoints" / "last.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert resume(whole) == 0
    assert capsys.readouterr().out.startswith(f"the run in '{whole}' is finished: best top-1 ")
    assert (whole / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten_unless_asked(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "notes.txt").write_text("mine")
    config = (out / "config.json").read_bytes()
    assert train(out, "--epochs", "1") == 2
    assert (
        f"'{out}' holds a run already: give --resume to continue it or --overwrite to start over"
        in capsys.readouterr().err
    )
    assert (out / "config.json").read_bytes() == config
    assert train(out, "--epochs", "1", "--overwrite") == 0
    assert len(RunFolder(out).metrics()) == 1
    # of the run before: its method had attention
    assert not (out / "attention.csv").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert train(out, "--overwrite", "--resume") == 2


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 7)
        assert train(out, *FLAGS) == 143
    before = (out / "checkpoints" / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    capsys.readouterr()
    try:
        assert resume(out, "--checkpoint-every", "2") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capsys.readouterr().err
    assert "cannot write checkpoint" in printed
    assert "File too large; the earlier one there is whole" in printed
    assert printed.count("\n") == 1
    assert (out / "checkpoints" / "last.pt").read_bytes() == before
    assert resume(out) == 0


def test_a_damaged_checkpoint_is_named(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "summary.json").unlink()
    (out / "checkpoints" / "last.pt").write_bytes(b"nothing")
    assert resume(out) == 2
    assert f"checkpoint '{out / 'checkpoints' / 'last.pt'}' is damaged" in capsys.readouterr().err
