"""Everything in which a run differs from the paper's recipe is named, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from semckd_kernels.training import config, presets
from semckd_kernels.training.report.recipe_differences import differences

TEACHER = {"teacher.name": "resnet32x4", "teacher.weights": "teacher.pt"}
DISTILLED = {"method.name": "semckd", **TEACHER}


@pytest.mark.parametrize(
    ("preset", "student", "changes"),
    [
        ("cifar100", "resnet8x4", {}),
        ("cifar100", "resnet8x4", DISTILLED),
        ("cifar100", "ShuffleNetV2", DISTILLED),
        ("cifar100", "mobile_half", {"method.name": "kd", **TEACHER}),
        ("imagenet", "torchvision/resnet18", DISTILLED),
        # hardware, logging, seed and what the method does not use are no part of a recipe
        (
            "cifar100",
            "resnet8x4",
            {"recipe.seed": 3, "hardware.precision": "bf16", "logging.log_every": 1, "method.beta": 7.0},
        ),
        ("cifar100", "resnet8x4", {**DISTILLED, "method.backend": "reference", "data.image_size": 32}),
        # the same images an update in other pieces
        ("imagenet", "torchvision/resnet18", {"recipe.batch_size": 32, "hardware.world_size": 8}),
        ("cifar100", "resnet8x4", {"recipe.batch_size": 32, "recipe.accumulate": 2}),
    ],
)
def test_the_papers_recipe(preset: str, student: str, changes: dict[str, Any]) -> None:
    assert differences(config.replace(presets.preset(preset, student), **changes)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe.epochs": 2}, "epochs 2 (the paper: 240)"),
        ({"recipe.lr": 0.1}, "learning rate 0.1 (the paper: 0.05)"),
        ({"recipe.momentum": 0.8}, "momentum 0.8 (the paper: 0.9)"),
        ({"recipe.weight_decay": 1e-4}, "weight decay 0.0001 (the paper: 0.0005)"),
        ({"recipe.milestones": (100,)}, "milestones 100 (the paper: 150,180,210)"),
        ({"recipe.gamma": 0.2}, "gamma 0.2 (the paper: 0.1)"),
        ({"recipe.schedule": "cosine"}, "schedule cosine (the paper: step)"),
        ({"recipe.warm_up": 0.05}, "warm up 0.05 (the paper: 0)"),
        ({"recipe.batch_size": 128}, "images an update 128 (the paper: 64)"),
        ({"hardware.world_size": 4}, "images an update 256 (the paper: 64)"),
        ({"method.beta": 50.0}, "beta 50 (the paper: 400)"),
        ({"method.temperature": 2.0}, "temperature 2 (the paper: 4)"),
        ({"method.kd_standardize": True}, "standardized logits on (the paper: off)"),
        ({"method.kd_weight": 0.0}, "KD weight 0 (the paper: 1)"),
        ({"method.ce_weight": 0.5}, "cross-entropy weight 0.5 (the paper: 1)"),
        ({"method.soft": 0.5}, "soft 0.5 (the paper: 1)"),
        ({"method.factor": 8}, "factor 8 (the paper: 4)"),
        ({"data.augment": False}, "augment off (the paper: on)"),
        ({"data.train_fraction": 0.1}, "train fraction 0.1 (the paper: 1)"),
        ({"data.label_noise": 0.4}, "label noise 0.4 (the paper: 0)"),
        ({"data.image_size": 64}, "image size 64 (the paper: 32)"),
        ({"student.weights": "old.pt"}, "student's first parameters old.pt (the paper: random)"),
        ({"student.pretrained": True}, "student's first parameters pretrained (the paper: random)"),
        ({"student.layers": ("layer1",)}, "layers of resnet8x4 layer1 (the paper: the ends of its stages)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_difference_is_named(changes: dict[str, Any], text: str) -> None:
    run = config.replace(presets.preset("cifar100", "resnet8x4"), **{**DISTILLED, **changes})
    assert differences(run) == [text]


def test_the_learning_rate_of_small_networks() -> None:
    run = config.replace(presets.preset("cifar100", "shufflev2"), **{"recipe.lr": 0.05})
    assert differences(run) == ["learning rate 0.05 (the paper: 0.01)"]


def test_another_recipe_altogether() -> None:
    """CIFAR-100 by the default preset."""
    run = config.replace(presets.preset("digits", "resnet8x4"), **{**DISTILLED, "data.name": "cifar100"})
    assert differences(run) == [
        "epochs 10 (the paper: 240)",
        "schedule cosine (the paper: step)",
        "warm up 0.1 (the paper: 0)",
        "beta 50 (the paper: 400)",
    ]
