"""A run changes a folder only where the folder is its own, and removes only what a run has written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import training_nets
from training_nets import resume, train

from semckd_kernels import cli
from semckd_kernels.training import lock, ownership
from semckd_kernels.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_report")
QUICK = ["--epochs", "1", "--batch-size", "480"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def strangers(folder: Path) -> None:
    """Folders and files with the names of a run's, by somebody else."""
    for name in ("checkpoints", "analysis", "tensorboard"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints" / "best_model.pth").write_text("months of work")
    (folder / "analysis" / "notes.md").write_text("x")
    (folder / "report.html").write_text("y")


def another_program(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "format": 1}))
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, folder / "checkpoints" / "last.pt")


def one_note(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]], ids=["new", "overwrite", "resume"])
@pytest.mark.parametrize("fill", [strangers, another_program, one_note])
def test_a_folder_that_is_no_run_is_not_touched(
    fill: Callable[[Path], None], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fill(out)
    before = contents(out)
    assert train(out, *QUICK, *flags) == 2
    printed = capsys.readouterr().err
    assert f"'{out}' holds no run but " in printed
    assert printed.count("\n") == 1
    assert contents(out) == before
    with pytest.raises(ValueError, match="holds no run but "):
        RunFolder(out).create(training_nets.make_config())
    assert contents(out) == before


@pytest.mark.parametrize(
    "command",
    [["train", "--student", "resnet8", "--out", ""], ["evaluate", " "], ["report", ""], ["demo", "--out", ""]],
)
def test_an_empty_name_is_not_the_working_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    assert stopped.value.code == 2
    assert "must be a folder, got an empty name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="must have a name"):
        RunFolder("")


def test_overwriting_removes_a_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, *QUICK, "--tensorboard") == 0
    (out / "checkpoints" / "teacher.pth").write_text("mine")
    (out / "tensorboard" / "notes.txt").write_text("mine")
    (out / "analysis" / "single_pairs" / "pair_0_0").mkdir(parents=True)
    (out / "analysis" / "single_pairs" / "pair_0_0" / "config.json").write_text("a run of its own")
    (out / "analysis" / "attention.png").write_text("of the run that goes")
    (out / "checkpoints" / ".last.pt.tmp").write_text("cut off by a crash")
    events = [path.name for path in (out / "tensorboard").glob("events*")]
    assert events
    assert train(out, *QUICK, "--overwrite", "--seed", "1") == 0
    found = contents(out)
    assert {name for name, content in found.items() if content in (b"mine", b"a run of its own")} == {
        "checkpoints/teacher.pth",
        "tensorboard/notes.txt",
        "analysis/single_pairs/pair_0_0/config.json",
    }
    assert not [name for name in found if Path(name).name in (*events, "attention.png", ".last.pt.tmp")]


def test_overwriting_waits_until_the_new_run_is_known_to_work(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, *QUICK) == 0
    before = contents(out)
    for bad in (["--student-layers", "a,c"], ["--student-weights", "missing.pt"], ["--batch-size", "2000"]):
        assert train(out, *QUICK, "--overwrite", *bad) == 2
    assert contents(out) == before


@pytest.mark.parametrize("name", ["", "checkpoints/best.pt", "link.pt"])
def test_weights_that_overwriting_would_remove(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(out, *QUICK) == 0
    (tmp_path / "link.pt").symlink_to(out / "checkpoints" / "best.pt")
    weights = tmp_path / name if name == "link.pt" else out / name
    before = contents(out)
    assert train(out, *QUICK, "--overwrite", "--student-weights", str(weights)) == 2
    assert "--overwrite would remove the weights" in capsys.readouterr().err
    assert contents(out) == before


def test_a_run_without_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint holds it as well; nothing is wiped."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train(whole, *QUICK) == 0
    shutil.copytree(whole, out)
    (out / "config.json").unlink()
    # of a version without a lock file
    (out / lock.NAME).unlink()
    before = contents(out)
    assert train(out, *QUICK) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert contents(out) == before
    assert cli.main(["evaluate", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert resume(out) == 0
    training_nets.same_run(whole, out)
    assert (out / "config.json").read_bytes() == (whole / "config.json").read_bytes()


HOLD = """
import importlib.util, pathlib, sys, time
# the file alone: the package imports torch, which takes seconds
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.FolderLock(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, *QUICK) == 0
    before = contents(out)
    (out / "report.html").unlink()
    first = subprocess.Popen([sys.executable, "-c", HOLD, lock.__file__, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        for command in (
            lambda: train(out, *QUICK, "--overwrite"),
            lambda: resume(out, "--no-tensorboard"),
            lambda: cli.main(["report", str(out)]),
        ):
            capsys.readouterr()
            assert command() == 2
            printed = capsys.readouterr().err
            assert f"'{out}' is in use by process {first.pid} on " in printed
            assert ", since 20" in printed
            assert printed.count("\n") == 1
        after = contents(out)
        assert {name for name in before if after.get(name) != before[name]} == {"report.html", lock.NAME}
        # looking at it needs no lock
        assert cli.main(["evaluate", str(out)]) == 0
    finally:
        first.kill()
        first.wait()
    assert resume(out) == 0
    assert (out / "report.html").exists()


def test_the_lock_within_a_process(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked():
        with first.locked():
            pass
        # reading the file would release the lock
        assert ownership.is_run(tmp_path / "run")
        with pytest.raises(lock.Locked, match=f"in use by process {os.getpid()}"), second.locked():
            pass
        child = subprocess.run(
            [sys.executable, "-c", HOLD, lock.__file__, str(first.path)], capture_output=True, text=True
        )
        # whatever was opened meanwhile has not released it
        assert "in use by process" in child.stderr
    # nothing was written into it
    assert list(tmp_path.iterdir()) == []
    with second.locked():
        (tmp_path / "run" / "config.json").write_text("{}")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", lock.NAME]


def test_a_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), RunFolder(tmp_path / "run").locked():
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: int, operation: int) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refused)
    start = time.monotonic()
    assert train(tmp_path / "run", *QUICK) == 0
    assert time.monotonic() - start < 60
    assert "has no locks (No locks available)" in capsys.readouterr().err
