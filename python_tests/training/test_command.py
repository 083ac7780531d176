"""``python -m semckd_kernels.training`` as a user meets it: a quick run, bad input, Ctrl-C, a missing package."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from semckd_kernels.training import report
from semckd_kernels.training.__main__ import main

COMMAND = [sys.executable, "-m", "semckd_kernels.training"]
RUNS = ["teacher", "student", "kd", "semckd_reference", "semckd"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A finished quick run, over the files of an earlier one."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    out.mkdir()
    for name in report.FILES:
        (out / name).write_text("of an earlier run")
    command = [*COMMAND, "--quick", "--device", "cpu", "--seed", "5", "--batch-size", "100", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), out


def test_quick_run_prints_a_table(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    finished, out = quick
    assert finished.returncode == 0, finished.stderr
    rows = re.findall(r"^(\S.*?) {2,}ResNet-(\d+), width +(\d+) +([\d.]+)% +([\d.]+)$", finished.stdout, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        ("teacher", "20", "16"),
        ("student alone", "8", "8"),
        ("KD", "8", "8"),
        ("SemCKD, reference", "8", "8"),
        ("SemCKD, ours", "8", "8"),
    ]
    results = json.loads((out / "results.json").read_text())
    for row, run in zip(rows, results["runs"].values(), strict=True):
        assert float(row[3]) == pytest.approx(100 * run["accuracy"], abs=0.051)
        assert float(row[4]) == pytest.approx(run["step_ms"], abs=0.051)
    assert "Accuracy differences at this size are noise" in finished.stdout
    assert "first 2 steps agree" in finished.stdout
    # no bar where there is no terminal
    assert "step/s" not in finished.stderr


def test_quick_run_writes_results(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = quick
    # nothing else is left lying about
    assert sorted(path.name for path in out.iterdir()) == sorted(report.FILES)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert results["config"]["recipe"] == {
        "epochs": 1,
        "batch_size": 100,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "seed": 5,
    }
    assert results["environment"]["threads"] == 1
    assert results["environment"]["torch"] in torch.__version__
    assert list(results["runs"]) == RUNS
    for run in results["runs"].values():
        # 1,437 samples: 14 batches of 100 and one of 37
        assert run["steps"] == 15
        assert run["step_ms"] > 0
        # a whole number of the test images
        assert run["accuracy"] * results["test_samples"] == pytest.approx(round(run["accuracy"] * 360))
    assert results["runs"]["teacher"]["accuracy"] > 0.2
    assert results["agreement"]["holds"]
    for key in ("semckd_reference", "semckd"):
        weight = torch.tensor(results["runs"][key]["attention"]["weight"])
        assert weight.shape == (3, 3)
        torch.testing.assert_close(weight.sum(1), torch.ones(3))
    assert results["runs"]["kd"]["attention"] is None


def test_quick_run_writes_the_losses_of_each_step(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = quick
    with open(out / "losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 16)]
    runs = json.loads((out / "results.json").read_text())["runs"]
    for key in RUNS:
        assert float(rows[0][key]) == runs[key]["first_loss"]
        assert float(rows[-1][key]) == runs[key]["last_loss"]
    # untrained: the cross-entropy of ten classes
    assert float(rows[0]["student"]) == pytest.approx(2.3, abs=0.5)


def test_quick_run_writes_a_heat_map(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = quick
    pixels = torch.from_numpy(matplotlib.image.imread(out / "attention.png"))
    assert pixels.shape == (720, 960, 4)
    # the cell of the strongest pair is darker than that of the weakest; cells lie on a grid inside the axes
    weight = torch.tensor(json.loads((out / "results.json").read_text())["runs"]["semckd"]["attention"]["weight"])
    left, right, top, bottom = 200, 800, 40, 610
    brightness = torch.empty(3, 3)
    for i in range(3):
        for j in range(3):
            # a corner of the cell, away from its number
            y = top + int((i + 0.15) * (bottom - top) / 3)
            x = left + int((j + 0.15) * (right - left) / 3)
            brightness[i, j] = pixels[y, x, :3].mean()
    # two weights that round to one colour are no fault
    assert brightness.flatten()[weight.argmax()] == brightness.min()
    assert brightness.flatten()[weight.argmin()] == brightness.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1 to 10000, got '0'"),
        (["--epochs", "many"], "argument --epochs: must be a whole number from 1 to 10000, got 'many'"),
        (["--batch-size", "-1"], "argument --batch-size: must be a whole number from 1 to 1000000, got '-1'"),
        (["--batch-size", "1438"], "argument --batch-size: must be at most 1437, the number of training samples"),
        (["--lr", "nan"], "argument --lr: must be a finite number above 0, got 'nan'"),
        (["--beta", "0"], "argument --beta: must be a finite number above 0, got '0'"),
        (["--threads", "0"], "argument --threads: must be a whole number from 1 to 1024, got '0'"),
        (["--seed", "-3"], "argument --seed: must be a whole number from 0"),
        (["--device", "toaster"], "argument --device: 'toaster' cannot be used: "),
        (["--device", "meta"], "argument --device: 'meta' cannot be used: "),
        (["--device", "cpu", "--backend", "abacus"], "argument --backend: backend must be one of "),
        (["--device", "cpu", "--backend", "cuda"], "argument --backend: backend 'cuda' cannot serve cpu tensors: "),
        (["--speed", "11"], "unrecognized arguments: --speed 11"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path / "new" / "folder")])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith(f"python -m semckd_kernels.training: {message}")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_backend_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMCKD_BACKEND", "abacus")
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", "--out", str(tmp_path / "new")])
    assert stopped.value.code == 2
    assert "SEMCKD_BACKEND must be one of " in capsys.readouterr().err


def test_out_must_be_a_folder_that_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "blocked" / "attention.png").mkdir(parents=True)
    for out, reason in (
        ("file", "it is not a folder"),
        ("file/inside", "Not a directory"),
        ("blocked", "'attention.png' in it is a folder"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--device", "cpu", "--out", str(tmp_path / out)])
        assert stopped.value.code == 2
        expected = f"python -m semckd_kernels.training: argument --out: cannot write to '{tmp_path / out}': {reason}\n"
        assert capsys.readouterr().err == expected
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["attention.png", "blocked", "file"]


@pytest.mark.parametrize("name", ["torchvision", "sklearn", "matplotlib", "tqdm"])
def test_missing_package(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"{name} cannot be imported" in printed
    assert 'pip install "semckd-kernels[train]"' in printed
    assert printed.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "5000", "--device", "cpu", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background may have the signal ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("digits: 1437 training and 360 test images")
        # well into the teacher's training
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_files_are_old_or_new_but_never_half(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    report.write_files(tmp_path, {"a": b"new", "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}
    # the second file cannot be written: the first one stays as it was
    with pytest.raises(OSError, match="missing"):
        report.write_files(tmp_path, {"a": b"newer", "missing/b": b"newer"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}
