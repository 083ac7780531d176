"""Networks so small that a training run takes a second, as ``training_nets:NAME``, and runs made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semckd_kernels.cli.commands import main
from semckd_kernels.training import config, presets
from semckd_kernels.training import preparation as setup
from semckd_kernels.training.config import TrainConfig
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.run.folder import RunFolder

# what a test of bits must not compare: times
TIMES = (
    "images_per_second",
    "seconds",
    "data_ms",
    "teacher_ms",
    "student_ms",
    "criterion_ms",
    "optimizer_ms",
    "other_ms",
)


class Small(nn.Module):
    """Two stages ``a`` and ``b``, and a linear classifier."""

    def __init__(self, classes: int, in_channels: int = 1, width: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.a = self._stage(in_channels, width, norm)
        self.b = self._stage(width, 2 * width, norm)
        self.fc = nn.Linear(2 * width, classes)

    @staticmethod
    def _stage(before: int, after: int, norm: bool) -> nn.Sequential:
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(after) if norm else nn.Identity(), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.b(self.a(images)).mean((2, 3)))
        return logits


def grey(num_classes: int) -> nn.Module:
    return Small(num_classes)


def wide(num_classes: int) -> nn.Module:
    return Small(num_classes, width=6)


def rgb(num_classes: int) -> nn.Module:
    return Small(num_classes, in_channels=3)


def dropout(num_classes: int) -> nn.Module:
    """Draws random numbers in training."""
    net = Small(num_classes)
    net.fc = nn.Sequential(nn.Dropout(0.5), net.fc)
    return net


def without_norm(num_classes: int) -> nn.Module:
    return Small(num_classes, norm=False)


def one_pixel(num_classes: int) -> nn.Module:
    """Its maps are 1 x 1."""
    net = Small(num_classes)
    net.a = nn.Sequential(nn.AdaptiveAvgPool2d(1), net.a)
    return net


def norm_in_the_head(num_classes: int) -> nn.Module:
    net = Small(num_classes, norm=False)
    net.fc = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_classes))
    return net


def frozen_norm_in_the_head(num_classes: int) -> nn.Module:
    """Its BatchNorm uses no statistics of the batch, whatever mode it is put into."""
    net = norm_in_the_head(num_classes)
    norm = net.fc[1].eval()  # type: ignore[index, union-attr, operator]
    norm.train = lambda mode=True: norm
    return net


class Breaking(Small):
    """Its logits are not a number from some training step on."""

    def __init__(self, classes: int, last: int) -> None:
        super().__init__(classes)
        self.last, self.steps = last, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if not self.training:
            return logits
        self.steps += 1
        return logits * float("nan") if self.steps > self.last else logits


class BreaksInEvaluation(Small):
    """Its logits are not a number in evaluation, as after an overflow of BatchNorm's running statistics."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits * float("nan")


def breaks_in_evaluation(num_classes: int) -> nn.Module:
    return BreaksInEvaluation(num_classes)


def breaks_in_step_8(num_classes: int) -> nn.Module:
    return Breaking(num_classes, 7)


def breaks_on_rank_1(num_classes: int) -> nn.Module:
    return Breaking(num_classes, 7 if os.environ.get("RANK") == "1" else 1000)


LAYERS = ["--student-layers", "a,b"]


def train(out: Path, *flags: str, student: str = "grey") -> int:
    """``semckd train`` on the digits, in this process; returns the exit code."""
    name = ["--student", f"training_nets:{student}", *LAYERS, "--device", "cpu"]
    return main(["train", *name, "--no-tensorboard", "--out", str(out), *flags])


def resume(out: Path, *flags: str) -> int:
    """Goes on with a run as it is stored."""
    return main(["train", "--resume", "--out", str(out), *flags])


def signal_after(monkeypatch: pytest.MonkeyPatch, number: int, steps: int) -> None:
    """Has this process get a signal in a step, counted from 1 over all epochs."""
    add, count = engine.StepRecords.add, 0

    def counted(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        add(self, *args)
        if count == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(engine.StepRecords, "add", counted)


def make_config(student: str = "grey", **changes: Any) -> TrainConfig:
    """A run on the digits; ``changes`` by dotted name."""
    base = presets.preset("digits", f"training_nets:{student}")
    return config.replace(base, **{"student.layers": ("a", "b"), "logging.tensorboard": False, **changes})


def semckd(teacher: Path, **changes: Any) -> TrainConfig:
    """An epoch of SemCKD from the run of a teacher."""
    given = {"teacher.name": "training_nets:wide", "teacher.layers": ("a", "b"), "teacher.weights": str(teacher)}
    return make_config(**{**given, "method.name": "semckd", "recipe.epochs": 1, **changes})


def losses(trainer: engine.Trainer) -> list[float]:
    """The loss of every step of a whole run."""
    trainer.run()
    return [row["loss"] for row in trainer.folder.steps()]


def make_trainer(folder: Path, run: TrainConfig) -> engine.Trainer:
    created = RunFolder(folder)
    created.create(run)
    return engine.Trainer(setup.prepare(run), created)


def state(path: Path, name: str = "last") -> dict[str, Any]:
    values: dict[str, Any] = torch.load(path / "checkpoints" / f"{name}.pt", weights_only=True)
    return values


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Names of the values in two checkpoints that are not equal bit for bit.

    Times are not compared, nor how often something is logged.
    """
    if isinstance(a, float) and a != a:
        return [] if b != b else [name]
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [name]
    if isinstance(a, dict):
        names = [key for key in {**a, **b} if key not in (*TIMES, "parts_ms", "logging")]
        return [found for key in names for found in differences(a.get(key), b.get(key), f"{name}.{key}")]
    if isinstance(a, (list, tuple)):
        rows = zip(a, b, strict=True)
        return [found for n, (x, y) in enumerate(rows) for found in differences(x, y, f"{name}[{n}]")]
    return [] if a == b else [name]


def same_run(a: Path, b: Path) -> None:
    """Both runs ended with the same bits, and have the same rows but for their times."""
    for name in ("last", "best"):
        assert differences(state(a, name), state(b, name)) == []
    rows = [RunFolder(path).metrics() for path in (a, b)]
    assert len(rows[0]) == len(rows[1])
    for x, y in zip(*rows, strict=True):
        # nan is not equal to itself
        assert {k: str(v) for k, v in x.items() if k not in TIMES} == {
            k: str(v) for k, v in y.items() if k not in TIMES
        }
    for name in ("attention.csv", "steps.csv"):
        texts = [(path / name).read_text() if (path / name).exists() else None for path in (a, b)]
        assert texts[0] == texts[1]
