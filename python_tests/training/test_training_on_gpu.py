"""What only a GPU can show: precisions, whole steps as CUDA graphs, and times of queued work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_nets import losses, make_trainer

from semckd_kernels.training import config
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.run.rows import MILLISECONDS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def semckd(teacher: Path, **changes: Any) -> config.TrainConfig:
    return training_nets.semckd(teacher, **{"recipe.epochs": 2, "hardware.device": "cuda", **changes})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_graphed_run_is_an_eager_one(optimizer: str, teacher: Path, tmp_path: Path) -> None:
    """The warm-up leaves no trace, learning rates reach the graph, and smaller batches run beside it."""
    recipe = {"recipe.optimizer": optimizer}
    if optimizer != "sgd":
        recipe |= {"recipe.lr": 1e-3, "recipe.clip_grad": 1.0, "recipe.ema": 0.9}
    eager = losses(make_trainer(tmp_path / "eager", semckd(teacher, **recipe)))
    trainer = make_trainer(tmp_path / "graphed", semckd(teacher, **recipe, **{"hardware.cuda_graph": True}))
    graphed = losses(trainer)
    assert trainer.run_step.graph is not None
    assert graphed[:3] == pytest.approx(eager[:3], rel=1e-5)
    # training multiplies rounding errors
    assert graphed == pytest.approx(eager, rel=0.05)
    row = trainer.folder.metrics()[0]
    measured = [name for name in MILLISECONDS if row[name] == row[name]]
    assert measured == ["data_ms", "other_ms"]


def test_a_graphed_run_resumes(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = semckd(teacher, **{"hardware.cuda_graph": True, "logging.checkpoint_every": 10})
    whole = make_trainer(tmp_path / "whole", run)
    whole.run()
    half = make_trainer(tmp_path / "half", run)
    save = half._save

    def save_and_stop() -> None:
        save()
        raise KeyboardInterrupt

    monkeypatch.setattr(half, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        half.run()
    assert half.step == 10
    resumed = engine.Trainer(half.setup, half.folder, training_nets.state(tmp_path / "half"))
    resumed.run()
    rows = [trainer.folder.metrics()[-1]["train_loss"] for trainer in (whole, resumed)]
    assert rows[1] == pytest.approx(rows[0], rel=0.05)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precisions_change_little(precision: str, teacher: Path, tmp_path: Path) -> None:
    usual = losses(make_trainer(tmp_path / "fp32", semckd(teacher)))
    trainer = make_trainer(tmp_path / precision, semckd(teacher, **{"hardware.precision": precision}))
    changed = losses(trainer)
    assert changed[0] == pytest.approx(usual[0], rel=2e-2)
    assert changed[-1] == pytest.approx(usual[-1], rel=0.2)
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in trainer.distiller.parameters())


def test_parts_of_a_step_are_those_of_the_gpu(teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", semckd(teacher))
    summary = trainer.run()
    parts = trainer.folder.metrics()[1]
    assert min(parts[name] for name in MILLISECONDS[:-1]) > 0
    assert summary["peak_memory_mb"] > 0


def test_steps_do_not_wait_for_the_gpu(teacher: Path, tmp_path: Path) -> None:
    recipe = {"recipe.optimizer": "adamw", "recipe.clip_grad": 1.0, "recipe.ema": 0.9, "recipe.decay_all": False}
    trainer = make_trainer(tmp_path / "run", semckd(teacher, **{"logging.log_every": 100}, **recipe))
    steps = trainer.epoch_steps()
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
