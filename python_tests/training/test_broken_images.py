"""Images that cannot be decoded: the run names one and saves, or leaves them out and counts them."""

from __future__ import annotations

import os
import signal
from itertools import chain
from pathlib import Path

import pytest
import training_nets
from training_files import write_image_folders

from semckd_kernels.cli.commands import main
from semckd_kernels.training import data
from semckd_kernels.training.run.folder import RunFolder

# 18 images: 4 steps of 4, and one of 2
STEPS = 5
SIZES = ["--batch-size", "4", "--epochs", "2", "--log-every", "2", "--workers", "0"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_image_folders(tmp_path / "images")


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


def train(out: Path, root: Path, *flags: str) -> int:
    options = ["--preset", "imagenet", "--data-root", str(root), "--image-size", "16"]
    return training_nets.train(out, *options, *SIZES, *flags, student="rgb")


def test_the_run_saves_and_resumes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = cut(root / "train" / "n00000001" / "3.JPEG")
    assert train(tmp_path / "stopped", root) == 1
    error = capsys.readouterr().err
    step = training_nets.state(tmp_path / "stopped")["step"]
    assert 0 < step < STEPS
    assert f"image '{broken}' cannot be decoded: " in error
    assert f"mend or remove it, or give --skip-broken; '{RunFolder(tmp_path / 'stopped').last}' holds" in error
    assert f"up to epoch 1, step {step} of {STEPS}: --resume continues\n" in error
    assert error.count("\n") == 1
    # from there on as if it had been left out from the start
    assert training_nets.resume(tmp_path / "stopped", "--skip-broken") == 0
    assert train(tmp_path / "skipped", root, "--skip-broken") == 0
    error = capsys.readouterr().err
    assert error.count(f"semckd train: leaves out 1 so far: image '{broken}' cannot be decoded: ") == 2
    training_nets.same_run(tmp_path / "stopped", tmp_path / "skipped")
    assert RunFolder(tmp_path / "skipped").summary["counts"]["broken_images"] == 1


def test_a_test_image(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = cut(root / "val" / "n00000002" / "1.JPEG")
    assert train(tmp_path / "run", root) == 1
    error = capsys.readouterr().err
    assert f"image '{broken}' cannot be decoded: " in error
    assert f"up to epoch 1, step {STEPS} of {STEPS}: --resume continues" in error
    # no accuracy without it
    assert RunFolder(tmp_path / "run").metrics() == []
    assert training_nets.resume(tmp_path / "run", "--skip-broken") == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--which", "last"]) == 0
    printed = capsys.readouterr()
    assert ", 11 images" in printed.out
    assert f"left out 1 images: image '{broken}' cannot be decoded: " in printed.err
    # a run that has seen no broken image
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"skip_broken": true', '"skip_broken": false'))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"semckd evaluate: image '{broken}' cannot be decoded: ")


def test_a_whole_batch(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.glob("train/*/*.JPEG"):
        path.write_text("gone")
    assert train(tmp_path / "run", root, "--skip-broken") == 1
    error = capsys.readouterr().err
    assert "too few images of a batch are left: image '" in error
    assert "(and 3 more)" in error
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_worker_that_is_killed(root: Path) -> None:
    samples = data.build("imagenet", root=root, batch_size=4, image_size=16, workers=1)
    batches = samples.train_batches(0)
    next(batches)
    iterator = samples.train_loader.loader._iterator  # type: ignore[attr-defined]
    # torch's own handler raises by itself, wherever the process is, once a worker has died
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.kill(iterator._workers[0].pid, signal.SIGKILL)
        said = "a process that decodes images has failed, .+: fewer --workers need less"
        with pytest.raises(data.DataError, match=said):
            # what it has decoded before is still there
            list(chain(batches, samples.train_batches(1)))
    finally:
        iterator._shutdown_workers()
        signal.signal(signal.SIGCHLD, handler)
