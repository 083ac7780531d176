"""Runs in processes of their own. One process at a time is in test_demo.py; these start others, which takes long."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from training_nets import resume, same_run

from semckd_kernels.cli import workers
from semckd_kernels.training import config, presets
from semckd_kernels.training.config import TrainConfig
from semckd_kernels.training.loop.signals import Stopped
from semckd_kernels.training.run.folder import RunFolder

pytestmark = pytest.mark.slow


def make_config(**changes: Any) -> TrainConfig:
    """Three steps an epoch, of a network that another process knows by its name."""
    few = {"data.train_fraction": 0.1, "logging.tensorboard": False}
    return config.replace(presets.preset("digits", "resnet8"), **{**few, **changes})


def test_two_at_a_time_end_with_the_bits_of_one(tmp_path: Path) -> None:
    configs = [make_config(**{"recipe.seed": seed, "recipe.epochs": 1}) for seed in range(3)]
    said: list[Path] = []
    for name, jobs in (("one", 1), ("two", 2)):
        runs = {tmp_path / name / str(n): run for n, run in enumerate(configs)}
        workers.train(runs, jobs, said.append)
        assert sorted(said) == list(runs)
        said.clear()
    for n in range(3):
        same_run(tmp_path / "one" / str(n), tmp_path / "two" / str(n))


def test_ctrl_c_leaves_a_checkpoint_and_an_error_stops_the_others(tmp_path: Path) -> None:
    long = make_config(**{"recipe.epochs": 10_000})
    runs = {tmp_path / str(n): long for n in range(3)}

    def interrupt() -> None:
        while not all(RunFolder(path).last.exists() for path in list(runs)[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped):
        workers.train(runs, 2, print)
    # the third had not begun
    assert [path.exists() for path in runs] == [True, True, False]
    for path in list(runs)[:2]:
        assert not RunFolder(path).is_finished
        # it is resumable: another configuration is what it complains of, not the checkpoint
        assert resume(path, "--epochs", "1") == 2
    bad = {tmp_path / "bad": make_config(**{"data.train_fraction": 0.001}), tmp_path / "long": long}
    with pytest.raises(ValueError, match="batch_size must be at most"):
        workers.train(bad, 2, print)
    assert not RunFolder(tmp_path / "long").is_finished
