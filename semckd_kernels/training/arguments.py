"""The flags of ``semckd train``, and how they make a configuration: preset, then flags, or a stored run, then flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import config, presets
from .config import ModelConfig, TrainConfig

EXIT_USAGE = 2
# what a run that goes on may change: nothing of it moves a bit of the parameters. The number of epochs is another case.
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.download",
    "logging.log_every",
    "logging.checkpoint_every",
    "logging.tensorboard",
)


class Parser(argparse.ArgumentParser):
    """A parser that answers bad input with one sentence; the usage is in ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got '{text}'")
        return value

    return parse


def number(zero: bool) -> Callable[[str], float]:
    """A parser of finite numbers above zero, or from zero on."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            what = "a finite number of at least 0" if zero else "a finite number above 0"
            raise argparse.ArgumentTypeError(f"must be {what}, got '{text}'")
        return value

    return parse


def _listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of values with commas between them."""
    return lambda text: tuple(kind(part.strip()) for part in text.split(",") if part.strip())


COUNT, SEED = whole(1, 1_000_000_000), whole(0, 2**63 - 1)
POSITIVE, NOT_NEGATIVE = number(zero=False), number(zero=True)
SWITCH: dict[str, Any] = {"action": "store_true"}
EITHER: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
# groups of flags: a flag is the dotted name of its value in the configuration, and argparse's options
FLAGS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "networks (`semckd info` lists names; also torchvision/NAME, timm/NAME, package.module:factory)": {
        "--student": ("student.name", {"metavar": "NAME", "help": "the network to train"}),
        "--student-layers": ("student.layers", {"type": _listed(str), "metavar": "PATH,...", "help": "its maps; stages by default"}),
        "--student-weights": ("student.weights", {"metavar": "FILE_OR_RUN", "help": "parameters to start from"}),
        "--student-pretrained": ("student.pretrained", {**SWITCH, "help": "start from torchvision's or timm's"}),
        "--teacher": ("teacher.name", {"metavar": "NAME", "help": "the network to learn from; a run's own where weights are a run"}),
        "--teacher-layers": ("teacher.layers", {"type": _listed(str), "metavar": "PATH,...", "help": "its maps; stages by default"}),
        "--teacher-weights": ("teacher.weights", {"metavar": "FILE_OR_RUN", "help": "its parameters"}),
        "--teacher-pretrained": ("teacher.pretrained", {**SWITCH, "help": "its parameters are torchvision's or timm's"}),
    },
    "loss": {
        "--method": ("method.name", {"choices": config.METHODS, "help": "student alone (also trains teachers), KD, SemCKD, SemCKD "
                                     "with equal weights, SemCKD between one pair of layers"}),
        "--pair": ("method.pair", {"type": whole(0, 10_000), "nargs": 2, "metavar": ("I", "J"), "help": "student and teacher layer, from 0"}),
        "--beta": ("method.beta", {"type": POSITIVE, "help": "weight of SemCKD"}),
        "--ce-weight": ("method.ce_weight", {"type": NOT_NEGATIVE, "help": "weight of the cross-entropy"}),
        "--kd-weight": ("method.kd_weight", {"type": NOT_NEGATIVE, "help": "weight of KD, also beside SemCKD"}),
        "--temperature": ("method.temperature", {"type": POSITIVE, "help": "of KD"}),
        "--factor": ("method.factor", {"type": COUNT, "help": "width of the attention: batch size / FACTOR"}),
        "--soft": ("method.soft", {"type": POSITIVE, "help": "temperature of the attention"}),
        "--backend": ("method.backend", {"help": "of SemCKD, such as cpu, triton or reference; the fastest by default"}),
    },
    "data": {
        "--data": ("data.name", {"metavar": "NAME", "help": "digits, cifar100 or imagenet; the preset's by default"}),
        "--data-root": ("data.root", {"metavar": "DIR", "help": "folder of the data set"}),
        "--download": ("data.download", {**SWITCH, "help": "fetch the data set where it is missing"}),
        "--workers": ("data.workers", {"type": whole(0, 1024), "help": "processes that decode images, of each process"}),
        "--image-size": ("data.image_size", {"type": COUNT, "help": "side of the images; the data set's own by default"}),
        "--augment": ("data.augment", {**EITHER, "help": "random crops and flips"}),
    },
    "recipe": {
        "--epochs": ("recipe.epochs", {"type": COUNT}),
        "--batch-size": ("recipe.batch_size", {"type": COUNT, "help": "images a step, of each process"}),
        "--accumulate": ("recipe.accumulate", {"type": COUNT, "help": "steps between two updates of the parameters"}),
        "--lr": ("recipe.lr", {"type": POSITIVE, "help": "highest learning rate"}),
        "--momentum": ("recipe.momentum", {"type": NOT_NEGATIVE}),
        "--weight-decay": ("recipe.weight_decay", {"type": NOT_NEGATIVE}),
        "--schedule": ("recipe.schedule", {"choices": config.SCHEDULES}),
        "--milestones": ("recipe.milestones", {"type": _listed(COUNT), "metavar": "EPOCH,...", "help": "of schedule step"}),
        "--gamma": ("recipe.gamma", {"type": POSITIVE, "help": "factor at a milestone"}),
        "--warm-up": ("recipe.warm_up", {"type": NOT_NEGATIVE, "help": "share of the updates over which the learning rate rises"}),
        "--seed": ("recipe.seed", {"type": SEED, "help": "of parameters, order and augmentation"}),
    },
    "hardware": {
        "--device": ("hardware.device", {"help": "cpu, cuda, cuda:1, ...; a GPU if there is one by default"}),
        "--precision": ("hardware.precision", {"choices": config.PRECISIONS, "help": "bf16 and fp16 are autocast"}),
        "--channels-last": ("hardware.channels_last", {**EITHER, "help": "memory format of networks and images"}),
        "--compile": ("hardware.compile", {**EITHER, "help": "torch.compile student and teacher"}),
        "--cuda-graph": ("hardware.cuda_graph", {**EITHER, "help": "the whole step as one CUDA graph"}),
        "--deterministic": ("hardware.deterministic", {**EITHER, "help": "cuDNN algorithms that repeat bit for bit"}),
        "--threads": ("hardware.threads", {"type": whole(1, 4096), "help": "of the CPU"}),
    },
    "logging": {
        "--log-every": ("logging.log_every", {"type": whole(1, 100_000), "help": "steps between two looks at the losses"}),
        "--checkpoint-every": ("logging.checkpoint_every", {"type": COUNT, "metavar": "STEPS", "help": "also within an epoch"}),
        "--tensorboard": ("logging.tensorboard", {**EITHER, "help": "by default where it is installed"}),
        "--log-steps": ("logging.steps", {**EITHER, "help": "losses of every step in steps.csv"}),
    },
}  # fmt: skip


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=presets.NAMES, default=argparse.SUPPRESS, help="recipe to start from; digits by default"
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, (name, options) in flags.items():
            # absent unless given: what is not given is the preset's, or the stored run's
            group.add_argument(flag, dest=name, default=argparse.SUPPRESS, **options)
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, required=True, help="folder of the run")
    group.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, bit for bit; starts anew without one"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the flags that were given, by dotted name."""
    values = {name: value for name, value in vars(args).items() if "." in name}
    if "method.pair" in values:
        values["method.pair"] = tuple(values["method.pair"])
    if values.get("hardware.device") == "auto":
        values["hardware.device"] = _default_device()
    return values


def make_config(args: argparse.Namespace, world_size: int) -> TrainConfig:
    """The configuration of a new run.

    Raises:
        ValueError: flags that make no sense together.
    """
    values = {"hardware.device": _default_device(), **given(args), "hardware.world_size": world_size}
    if not values.get("student.name"):
        raise ValueError("a student is needed: give --student NAME (`semckd info` lists names)")
    name, batch_size = getattr(args, "preset", "digits"), values.get("recipe.batch_size")
    base = presets.preset(name, values["student.name"], world_size, batch_size)
    if any(key.startswith("teacher.") for key in values):
        values |= _teacher(values)
    return config.replace(base, **values)


def _teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Name and layers of a teacher that is given as a run."""
    if values.get("teacher.name"):
        return {}
    # it needs the optional packages, which `semckd info` does without
    from .run_folder import RunFolder

    run = RunFolder(values.get("teacher.weights", ""))
    if not (values.get("teacher.weights") and run.is_run):
        raise ValueError("a teacher needs a name: give --teacher NAME, or a run's folder as --teacher-weights")
    teacher: ModelConfig = run.config.student
    return {"teacher.name": teacher.name, "teacher.layers": values.get("teacher.layers", teacher.layers)}


def resumed_config(args: argparse.Namespace, stored: TrainConfig, world_size: int) -> TrainConfig:
    """The configuration of a run that goes on: the stored one, with what may change.

    ``recipe.epochs`` may be raised where learning rates do not depend on it: schedule ``step`` without warm-up.

    Raises:
        ValueError: a flag differs from the stored run in what would change its course.
    """
    kept = {"student.name": stored.student.name, "hardware.device": stored.hardware.device}
    if hasattr(args, "preset"):
        # a preset is a whole configuration: all of it counts as given
        wanted = make_config(argparse.Namespace(**{**kept, **vars(args)}), world_size)
    else:
        wanted = config.replace(stored, **given(args), **{"hardware.world_size": world_size})
    before, after = config.flatten(stored), config.flatten(wanted)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name) and name not in MAY_CHANGE]
    recipe = wanted.recipe
    if recipe.schedule == "step" and not recipe.warm_up and recipe.epochs > stored.recipe.epochs:
        names = [name for name in names if name != "recipe.epochs"]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)} and is now {after.get(name)}" for name in names)
        raise ValueError(f"the run in '{args.out}' cannot go on with another configuration: {changes}")
    return wanted


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
