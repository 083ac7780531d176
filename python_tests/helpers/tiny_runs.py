"""Finished runs on digits with networks that train in a second, for tests of what reads runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semckd_kernels.training import config, presets
from semckd_kernels.training import preparation as setup
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.run.folder import RunFolder

STUDENT, TEACHER = "tiny_runs:student", "tiny_runs:teacher"
STUDENT_LAYERS, TEACHER_LAYERS = ("stage1", "stage2"), ("stage1", "stage2", "stage3")


class Stages(nn.Module):
    """Convolution, BatchNorm and ReLU for each stage, each at half the resolution of the one before."""

    def __init__(self, widths: list[int], num_classes: int) -> None:
        super().__init__()
        before = [1, *widths]
        for n, (c, width) in enumerate(zip(before, widths, strict=False), start=1):
            parts = nn.Conv2d(c, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            self.add_module(f"stage{n}", nn.Sequential(*parts))
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for name, stage in self.named_children():
            if name.startswith("stage"):
                x = stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def student(num_classes: int) -> nn.Module:
    return Stages([6, 8], num_classes)


def teacher(num_classes: int) -> nn.Module:
    return Stages([8, 12, 16], num_classes)


def train(folder: Path, method: str, teacher_run: Path | None, epochs: int = 2, **changes: Any) -> RunFolder:
    """Trains a run; without a teacher's run it is the teacher that is trained, or the student by ``ce``."""
    values: dict[str, Any] = {"method.name": method, "recipe.epochs": epochs, "recipe.batch_size": 100}
    values |= {"student.name": STUDENT, "student.layers": STUDENT_LAYERS, "logging.tensorboard": False}
    if method != "ce":
        values |= {"teacher.name": TEACHER, "teacher.layers": TEACHER_LAYERS, "teacher.weights": str(teacher_run)}
    run = config.replace(presets.preset("digits", STUDENT), **{**values, **changes})
    found = RunFolder(folder)
    prepared = setup.prepare(run)
    found.create(run)
    engine.train(prepared, found)
    return found


def train_all(root: Path) -> dict[str, RunFolder]:
    """A teacher, and a student by each method but ``equal``."""
    own = {"student.name": TEACHER, "student.layers": TEACHER_LAYERS}
    runs = {"teacher": train(root / "teacher", "ce", None, **own), "ce": train(root / "ce", "ce", None)}
    for method in ("kd", "semckd"):
        runs[method] = train(root / method, method, root / "teacher")
    runs["pair"] = train(root / "pair", "pair", root / "teacher", **{"method.pair": (1, 2)})
    return runs
