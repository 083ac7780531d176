"""What a finished run comes to: ``summary.json``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..preparation import Setup
from .environment import environment
from .rows import MILLISECONDS


def make(
    setup: Setup, rows: Sequence[dict[str, float]], best: dict[str, Any], warnings: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Accuracies, counts, seconds, layers, split of a step and environment, in the types of JSON.

    Args:
        setup: of the run.
        rows: of all epochs, see :func:`.rows.metric_columns`.
        best: epoch, top1 and top5 of the best test accuracy.
        warnings: see :class:`.divergence.Watch`.
    """
    teacher, on_gpu = setup.teacher, setup.device.type == "cuda"
    last = rows[-1]
    # the first epoch pays for allocations and compilations that the others do not
    timed = rows[1:] or rows
    return {
        "accuracy": {
            "best": dict(best),
            "last": {"epoch": int(last["epoch"]), "top1": last["test_top1"], "top5": last["test_top5"]},
        },
        "warnings": [dict(warning) for warning in warnings],
        "counts": {
            "train_images": setup.data.train_count,
            "test_images": setup.data.test_count,
            "steps_per_epoch": setup.data.steps_per_epoch,
            "epochs": len(rows),
            "student_parameters": _count(setup.student),
            "teacher_parameters": None if teacher is None else setup.teacher_parameters,
            "criterion_parameters": _count(setup.criterion),
        },
        "images": setup.data.images._asdict(),
        "seconds": sum(row["seconds"] for row in rows),
        "images_per_second": _median(row["images_per_second"] for row in timed),
        "step_ms": {name: _median(row[name] for row in timed) for name in MILLISECONDS},
        "peak_memory_mb": torch.cuda.max_memory_allocated(setup.device) / 1e6 if on_gpu else None,
        "layers": {
            "student": _layers(setup.student.layers, setup.student_shapes),
            "teacher": _layers(() if teacher is None else teacher.layers, setup.teacher_shapes),
        },
        # what of the teacher is part of its convolutions; None where it runs as it is
        "teacher": None if teacher is None else teacher.prepared,
        "environment": environment(setup.device),
    }


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layers(names: Iterable[str], shapes: Iterable[torch.Size]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(shape)} for name, shape in zip(names, shapes, strict=True)]


def _median(values: Iterable[float]) -> float | None:
    """The usual epoch, whatever else the machine did in others; None where nothing was timed: JSON has no nan."""
    median = statistics.median(values)
    return None if math.isnan(median) else median
