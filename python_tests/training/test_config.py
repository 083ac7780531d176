"""Configurations: JSON both ways, what is refused, and the presets against the paper."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from semckd_kernels.training import config, presets, schedules
from semckd_kernels.training.config import (
    DataConfig,
    HardwareConfig,
    LoggingConfig,
    MethodConfig,
    ModelConfig,
    RecipeConfig,
    TrainConfig,
)

# no value is the default
EVERYTHING = TrainConfig(
    ModelConfig("wrn_16_2", ("a", "b.0"), "student.pt", pretrained=True),
    ModelConfig("vgg13", ("c",), "teacher.pt", pretrained=True),
    MethodConfig("pair", 0.5, 2.0, 3.0, 7.5, (1, 2), 8, 0.25, "reference", True, 0.1),
    DataConfig("imagenet", "/data", 3, True, 96, augment=False, skip_broken=True, train_fraction=0.5, label_noise=0.2),
    RecipeConfig(
        *(7, 16, 2, 0.3, 0.8, 1e-3, "step", (2, 5), 0.2, 0.05, 11),
        *("adamw", (0.8, 0.95), 1e-6, False, 0.01, 2.0, 0.99),
    ),
    HardwareConfig("cuda", "tf32", True, True, False, True, 3, 4, True),
    LoggingConfig(5, 100, True, True, "wandb"),
)


def test_json_round_trip_of_every_field(tmp_path: Path) -> None:
    defaults = config.flatten(TrainConfig(ModelConfig("x"), ModelConfig("x", weights="y"), MethodConfig("kd")))
    same = [name for name, value in config.flatten(EVERYTHING).items() if defaults.get(name) == value]
    # a CUDA graph excludes other values here
    assert same == ["hardware.cuda_graph"]
    path = tmp_path / "config.json"
    path.write_text(EVERYTHING.to_json())
    assert json.loads(path.read_text())["format"] == 1
    # as runs of earlier versions have it
    older = EVERYTHING.to_dict()
    for name in ("skip_broken", "train_fraction", "label_noise"):
        del older["data"][name]
    del older["method"]["kd_standardize"], older["method"]["label_smoothing"], older["hardware"]["prepare_teacher"]
    for name in ("optimizer", "betas", "eps", "decay_all", "min_lr", "clip_grad", "ema"):
        del older["recipe"][name]
    kept = config.from_dict(older).data
    assert (kept.skip_broken, kept.train_fraction, kept.label_noise) == (False, 1.0, 0.0)
    assert not config.from_dict(older).method.kd_standardize
    assert not config.from_dict(older).hardware.prepare_teacher
    assert config.from_dict(older).recipe == RecipeConfig(*dataclasses.astuple(EVERYTHING.recipe)[:11])
    assert config.load(path) == EVERYTHING
    for name in presets.NAMES:
        alone = presets.preset(name, "resnet8")
        assert config.from_dict(json.loads(alone.to_json())) == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=2), "format must be 1, got 2"),
        (lambda v: v["recipe"].update(speed=1), "config.recipe.speed is not a field"),
        (lambda v: v["recipe"].pop("lr"), "config.recipe.lr is missing"),
        (lambda v: v["recipe"].update(lr="fast"), "config.recipe.lr must be of type float, got 'fast'"),
        (lambda v: v["recipe"].update(epochs=True), "config.recipe.epochs must be of type int, got True"),
        (lambda v: v["recipe"].update(milestones=3), "config.recipe.milestones must be a list of int, got 3"),
        (lambda v: v.update(student="resnet8"), "config.student must be a group of fields, got 'resnet8'"),
    ],
)
def test_json_that_is_not_a_configuration(change: Any, message: str, tmp_path: Path) -> None:
    values = json.loads(EVERYTHING.to_json())
    change(values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(message)):
        config.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        config.load(path)


def test_a_whole_number_is_a_float_too() -> None:
    values = json.loads(EVERYTHING.to_json())
    values["method"]["beta"] = 50
    beta = config.from_dict(values).method.beta
    assert (beta, type(beta)) == (50.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "magic"}, "method.name must be one of ce, kd, semckd, equal, pair, got 'magic'"),
        (
            {"recipe.schedule": "timm/cosin"},
            f"recipe.schedule must be one of {', '.join(schedules.KNOWN)}, got 'timm/cosin'; the nearest are timm/cos",
        ),
        ({"recipe.optimizer": "adamv"}, "or timm/NAME, got 'adamv'; the nearest are adam, radam"),
        ({"recipe.optimizer": "lbfgs"}, "or timm/NAME, got 'lbfgs'"),
        ({"recipe.betas": (0.9, 1.0)}, "recipe.betas must be from 0 to below 1, got 0.9, 1.0"),
        ({"recipe.eps": 0.0}, "recipe.eps must be a finite number above 0, got 0.0"),
        ({"recipe.clip_grad": -1.0}, "recipe.clip_grad must be a finite number above 0, got -1.0"),
        ({"recipe.ema": 1.0}, "recipe.ema must be from 0 to below 1, got 1"),
        ({"recipe.min_lr": 0.1}, "recipe.min_lr must be at most recipe.lr, 0.05, got 0.1"),
        ({"method.label_smoothing": 1.0}, "method.label_smoothing must be from 0 to below 1, got 1"),
        (
            {"hardware.device": "cuda", "hardware.cuda_graph": True, "recipe.optimizer": "timm/lamb"},
            "a CUDA graph holds an optimizer of sgd, adam, adamw only, got 'timm/lamb'",
        ),
        ({"recipe.batch_size": 0}, "recipe.batch_size must be at least 1, got 0"),
        ({"recipe.lr": math.inf}, "recipe.lr must be a finite number above 0, got inf"),
        ({"recipe.momentum": -0.1}, "recipe.momentum must be from 0 to below 1, got -0.1"),
        ({"recipe.momentum": 1.0}, "recipe.momentum must be from 0 to below 1, got 1"),
        ({"recipe.momentum": math.nan}, "recipe.momentum must be from 0 to below 1, got nan"),
        (
            {"recipe.warm_up": 7.0},
            "recipe.warm_up must be a share of all updates, from 0 to below 1, got 7: 7 of 10 epochs are 0.7",
        ),
        ({"recipe.warm_up": 30.0}, "recipe.warm_up must be a share of all updates, from 0 to below 1, got 30"),
        ({"recipe.warm_up": -0.5}, "recipe.warm_up must be a share of all updates, from 0 to below 1, got -0.5"),
        ({"method.ce_weight": 0.0}, "method.ce_weight must be above 0 with method 'ce', got 0"),
        (
            {"method.name": "kd", "method.kd_weight": 0.0, "teacher.name": "vgg13", "teacher.weights": "x"},
            "method.kd_weight must be above 0 with method 'kd', got 0",
        ),
        (
            {"method.name": "semckd", "recipe.batch_size": 3, "teacher.name": "vgg13", "teacher.weights": "x"},
            "method.factor must be at most recipe.batch_size, got 4 for 3 images",
        ),
        ({"recipe.milestones": (3, 2)}, "recipe.milestones must be epochs in ascending order, got [3, 2]"),
        ({"data.train_fraction": 0.0}, "data.train_fraction must be a share above 0 to 1, got 0"),
        ({"data.train_fraction": 10.0}, "data.train_fraction must be a share above 0 to 1, got 10: 10% are 0.1"),
        ({"data.label_noise": 1.5}, "data.label_noise must be a share from 0 to 1, got 1.5: 1.5% are 0.015"),
        ({"data.label_noise": math.nan}, "data.label_noise must be a share from 0 to 1, got nan"),
        ({"data.workers": -1}, "data.workers must be at least 0, got -1"),
        ({"method.name": "kd"}, "method 'kd' needs a teacher"),
        ({"teacher.name": "vgg13"}, "method 'ce' takes no teacher, got 'vgg13'"),
        ({"method.name": "kd", "teacher.name": "vgg13"}, "teacher 'vgg13' has no parameters to teach with"),
        ({"method.name": "pair", "teacher.name": "vgg13", "teacher.weights": "x"}, "method 'pair' needs --pair I J"),
        ({"method.pair": (0, 0)}, "--pair belongs to method 'pair', got method 'ce'"),
        ({"hardware.precision": "fp16"}, "precision fp16 needs a GPU, got device 'cpu'"),
        ({"hardware.precision": "tf32"}, "precision tf32 needs a GPU, got device 'cpu'"),
        ({"hardware.cuda_graph": True}, "a CUDA graph needs a GPU, got device 'cpu'"),
        (
            {"hardware.cuda_graph": True, "hardware.device": "cuda", "recipe.accumulate": 2},
            "accumulate must be 1, got 2",
        ),
        (
            {"hardware.cuda_graph": True, "hardware.device": "cuda", "hardware.precision": "fp16"},
            "cannot hold the gradient scaler",
        ),
        (
            {"hardware.cuda_graph": True, "hardware.device": "cuda", "hardware.world_size": 2},
            "a CUDA graph serves one process, got 2",
        ),
    ],
)
def test_what_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config.replace(TrainConfig(ModelConfig("resnet8")), **changes)


def test_replace_by_dotted_name() -> None:
    alone = TrainConfig(ModelConfig("resnet8"))
    changed = config.replace(
        alone, **{"recipe.lr": 0.5, "teacher.name": "vgg8", "teacher.weights": "x", "method.name": "kd"}
    )
    assert changed.recipe == dataclasses.replace(alone.recipe, lr=0.5)
    assert changed.teacher == ModelConfig("vgg8", weights="x")
    assert changed.data == alone.data


def test_global_batch_size() -> None:
    assert EVERYTHING.global_batch_size == 16 * 2 * 4


def test_presets_are_the_papers() -> None:
    cifar, imagenet = presets.preset("cifar100", "resnet8x4"), presets.preset("imagenet", "torchvision/resnet18")
    recipe = cifar.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        240,
        64,
        0.05,
        0.9,
        5e-4,
    )
    assert (recipe.schedule, recipe.milestones, recipe.gamma, recipe.warm_up) == ("step", (150, 180, 210), 0.1, 0.0)
    recipe = imagenet.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        90,
        256,
        0.1,
        0.9,
        1e-4,
    )
    assert (recipe.schedule, recipe.milestones, recipe.gamma, recipe.warm_up) == ("step", (30, 60), 0.1, 0.0)
    for run, beta in ((cifar, 400.0), (imagenet, 50.0)):
        method = run.method
        assert (method.beta, method.temperature, method.ce_weight, method.kd_weight) == (beta, 4.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["mobilenetv2", "MobileNetV2", "shufflenetv1", "shufflenetv2", "ShuffleV2"])
def test_small_networks_take_a_small_learning_rate(name: str) -> None:
    assert presets.preset("cifar100", name).recipe.lr == 0.01


def test_processes_share_the_batch_of_imagenet_and_not_that_of_cifar() -> None:
    assert presets.preset("imagenet", "x", 8).global_batch_size == 256
    assert presets.preset("imagenet", "x", 8, batch_size=64).global_batch_size == 512
    assert presets.preset("cifar100", "x", 8).recipe.batch_size == 64
    with pytest.raises(ValueError, match="3 processes cannot share preset imagenet's batch of 256"):
        presets.preset("imagenet", "x", 3)
    with pytest.raises(ValueError, match="preset must be one of digits, cifar100, imagenet, got 'mnist'"):
        presets.preset("mnist", "x")


def test_step_schedule() -> None:
    recipe = presets.preset("cifar100", "resnet8x4").recipe
    updates = 782
    factors = [
        schedules.factor(recipe, updates, update) for update in (0, 150 * 782 - 1, 150 * 782, 180 * 782, 240 * 782 - 1)
    ]
    assert factors == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.001], rel=1e-12)


def test_cosine_schedule_with_warm_up() -> None:
    recipe = RecipeConfig(epochs=10, schedule="cosine", warm_up=0.1)
    factors = [schedules.factor(recipe, 10, update) for update in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert max(factors) == factors[9] > 0.97
    assert schedules.factor(RecipeConfig(epochs=1, schedule="cosine", warm_up=0.1), 1, 0) == 1.0


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_setting_a_learning_rate(lr: Any) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedules.set_lr(optimizer, 0.25)
    found = optimizer.param_groups[0]["lr"]
    assert float(found) == 0.25
    # the same tensor: a CUDA graph reads that one
    assert found is lr or isinstance(lr, float)
