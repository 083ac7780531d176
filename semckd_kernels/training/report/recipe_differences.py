"""In what a run differs from the paper's recipe: accuracies compare only where nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import config, presets, schedules
from ..config import TrainConfig
from ..flags import written
from ..models import canonical_name

# data sets that the paper trains on; its preset has the data set's name
PAPER_DATA = ("cifar100", "imagenet")
# fields of the recipe that are no part of it, or are compared in another form
NOT_COMPARED = ("recipe.seed", "recipe.batch_size", "recipe.accumulate")
# sides of the images in pixels
SIDES = {"cifar100": 32, "imagenet": 224}


def differences(run: TrainConfig) -> list[str]:
    """Sentences such as ``"epochs 2 (the paper: 240)"``; empty where a run is trained by the paper's recipe.

    Compared are optimizer, schedule, batch, loss weights and temperatures as far as the method uses them, data,
    augmentation, and where the student's parameters and the layers come from. Number format and hardware are not.

    Args:
        run: on one of :data:`PAPER_DATA`.
    """
    paper = presets.preset(run.data.name, canonical_name(run.student.name.rsplit("/", 1)[-1]))
    return [f"{name} {written(here)} (the paper: {written(there)})" for name, here, there in _pairs(run, paper)]


def _pairs(run: TrainConfig, paper: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """What differs: its name, its value here, and the paper's."""
    here, there = config.flatten(run), config.flatten(paper)
    compared = [name for name in there if name.startswith("recipe.") and name not in NOT_COMPARED]
    idle = set(schedules.FIELDS) - set(schedules.fields(run.recipe.schedule))
    compared = [name for name in compared if name.removeprefix("recipe.") not in idle]
    # what has an effect, and a value in the paper
    used = (f"method.{name}" for name in run.method.record.fields if name not in ("backend", "pair", *run.method.idle))
    compared += [name for name in used if name in there]
    for name in (*compared, "data.augment", "data.train_fraction", "data.label_noise"):
        if here[name] != there[name]:
            yield label(name), here[name], there[name]
    if run.global_batch_size != paper.global_batch_size:
        yield "images an update", run.global_batch_size, paper.global_batch_size
    side = SIDES[run.data.name]
    if run.data.image_size not in (None, side):
        yield "image size", run.data.image_size, side
    if run.student.pretrained or run.student.weights:
        yield "student's first parameters", run.student.weights or "pretrained", "random"
    if run.method.record.association is not None:
        for model in (run.student, run.teacher):
            if model is not None and model.layers is not None:
                yield f"layers of {model.name}", model.layers, "the ends of its stages"


def label(dotted: str) -> str:
    """A value's name in a sentence: ``"learning rate"`` for ``recipe.lr``."""
    words = {"lr": "learning rate", "ce_weight": "cross-entropy weight", "kd_weight": "KD weight"}
    words |= {"kd_standardize": "standardized logits", "decay_all": "decay of biases and norms"}
    words |= {"min_lr": "lowest learning rate", "clip_grad": "norm of gradients", "ema": "moving average"}
    field = dotted.rpartition(".")[2]
    return words.get(field, field.replace("_", " "))
