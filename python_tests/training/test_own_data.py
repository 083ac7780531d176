"""Runs on data of a user's own: they train, stop and resume, and a stranger's run imports no data of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_nets
from torch.utils.data import DataLoader, Dataset, TensorDataset

from semckd_kernels.cli.commands import main
from semckd_kernels.training.run.folder import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
# 40 images: 5 steps of 8
FLAGS = ["--epochs", "2", "--batch-size", "8", "--log-every", "2"]
CALLS = {"count": 0}
pytestmark = pytest.mark.usefixtures("quick_report")


class Noisy(TensorDataset):
    """Images of one of four brightnesses, with noise that is drawn each time."""

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return image + torch.randn(image.shape), label


def datasets() -> tuple[Dataset[Any], Dataset[Any]]:
    labels = torch.arange(40) % 4
    images = labels[:, None, None, None].float().expand(-1, 1, 16, 16)
    return Noisy(images, labels), TensorDataset(images[:12], labels[:12])


def loaders(batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, test = datasets()
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 5)


def unruly() -> tuple[Dataset[Any], Dataset[Any]]:
    CALLS["count"] += 1
    train, test = datasets()
    return TensorDataset(*train.tensors), Unruly(*test.tensors)  # type: ignore[attr-defined]


class Unruly(TensorDataset):
    """Its images are never the same."""

    def __getitem__(self, index: Any) -> Any:
        CALLS["count"] += 1
        image, label = super().__getitem__(index)
        return image + CALLS["count"], label


def train(out: Path, name: str, *flags: str) -> int:
    return training_nets.train(out, "--data", f"test_own_data:{name}", *FLAGS, *flags)


@pytest.mark.parametrize("name", ["datasets", "loaders"])
def test_a_run_resumes_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "whole", name) == 0
    printed = capsys.readouterr()
    assert f"on test_own_data:{name}: 40 training and 12 test images, 4 classes" in printed.out
    assert "bit for bit" not in printed.out
    training_nets.signal_after(monkeypatch, signal.SIGTERM, 7)
    assert train(tmp_path / "stopped", name) == 128 + signal.SIGTERM
    monkeypatch.undo()
    # its code is imported already, so no flag has to name it
    assert training_nets.resume(tmp_path / "stopped") == 0
    training_nets.same_run(tmp_path / "whole", tmp_path / "stopped")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "whole"), "--which", "last"]) == 0
    assert ", 12 images" in capsys.readouterr().out


def test_what_cannot_repeat_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "unruly", "--workers", "0") == 0
    printed = capsys.readouterr().out
    note = "note: images of the test set of 'test_own_data:unruly' are not the same when they are read again"
    assert printed.index("5 steps") < printed.index(note) < printed.index("best top-1")


def test_classes_must_be_those_of_the_teacher(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "kd", "--teacher-weights", str(teacher)]
    assert train(tmp_path / "run", "datasets", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds 10 classes, but training_nets:wide is to have the data's 4" in error


def test_a_factory_that_fails_says_so_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "RunFolder") == 2
    assert capsys.readouterr().err == (
        "semckd train: data factory 'test_own_data:RunFolder' needs an argument 'path', and can be given 'root', "
        "'batch_size', 'image_size', 'seed', 'augment', 'workers', 'download', 'rank', 'world_size'\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_strangers_run_imports_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "datasets", "--epochs", "1") == 0
    mark = tmp_path / "has_run"
    module = tmp_path / "run" / "strangers_data.py"
    module.write_text(f"from pathlib import Path\nfrom test_own_data import datasets\nPath({str(mark)!r}).touch()\n")
    for path in (tmp_path / "run" / "config.json", *(tmp_path / "run" / "checkpoints").iterdir()):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace("test_own_data:datasets", "strangers_data:datasets"))
        else:
            values = torch.load(path, weights_only=True)
            values["config"]["data"]["name"] = "strangers_data:datasets"
            torch.save(values, path)
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.syspath_prepend(tmp_path / "run")
    for command in (["evaluate", "."], ["train", "--resume", "--out", ".", "--epochs", "1"]):
        (tmp_path / "run" / "summary.json").unlink(missing_ok=True)
        capsys.readouterr()
        assert main(command) == 2
        assert "names code that is not an installed package, 'strangers_data:datasets'" in capsys.readouterr().err
        assert not mark.exists()
    # who names it asks for it
    assert main(["train", "--resume", "--out", ".", "--data", "strangers_data:datasets"]) == 0
    assert mark.exists()
    sys.modules.pop("strangers_data")


@pytest.mark.skipif(not EXAMPLES.exists(), reason="runs in a checkout only")
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "classes.txt").write_text("dark\nbright\n")
    for name, count in (("train", 16), ("test", 6)):
        labels = np.arange(count) % 2
        levels = np.random.default_rng(0).integers(0, 56, (count, 12, 12, 3)) + 150 * labels[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", images=levels.astype(np.uint8), labels=labels)
    flags = ["--data", "own_data:make", "--data-root", str(tmp_path), "--epochs", "4", "--batch-size", "4"]
    assert training_nets.train(tmp_path / "run", *flags, "--train-fraction", "0.5", student="rgb") == 0
    summary = RunFolder(tmp_path / "run").summary
    assert (summary["counts"]["train_images"], summary["counts"]["test_images"]) == (8, 6)
    assert summary["accuracy"]["best"]["top1"] == 1.0
    sys.modules.pop("own_data")
