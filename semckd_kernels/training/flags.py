"""The flags of ``semckd train``: what each sets in the configuration, and the parsers of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import config
from .errors import EXIT_USAGE


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


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of values with commas between them."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    return parse


def folder_path(text: str) -> Path:
    """A parser of folders: an empty name, as of a variable that is not set, is not the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a folder, got an empty name ('.' is the working folder)")
    return Path(text)


COUNT, SEED = whole(1, 1_000_000_000), whole(0, 2**63 - 1)
POSITIVE, NOT_NEGATIVE = number(zero=False), number(zero=True)


class Flag(NamedTuple):
    """A flag, the dotted name of its value, its help, and further options of ``add_argument``."""

    name: str
    sets: str
    help: str
    options: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


def _typed(kind: Callable[[str], Any], **options: Any) -> dict[str, Any]:
    return {"type": kind, "metavar": "N", **options}


PATHS = _typed(listed(str), metavar="PATH,...")
SWITCH: dict[str, Any] = {"action": "store_true"}
EITHER: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
WEIGHTS = {"metavar": "FILE_OR_RUN"}
NAME = {"metavar": "NAME"}

FLAGS: dict[str, list[Flag]] = {
    "networks (`semckd info` lists names; also torchvision/NAME, timm/NAME, package.module:factory)": [
        Flag("--student", "student.name", "the network to train", NAME),
        Flag("--student-layers", "student.layers", "modules whose outputs are its maps; its stages by default", PATHS),
        Flag("--student-weights", "student.weights", "parameters to start from", WEIGHTS),
        Flag("--student-pretrained", "student.pretrained", "start from torchvision's or timm's parameters", SWITCH),
        Flag("--teacher", "teacher.name", "the network to learn from; where its weights are a run, that run's", NAME),
        Flag("--teacher-layers", "teacher.layers", "modules whose outputs are its maps; its stages by default", PATHS),
        Flag("--teacher-weights", "teacher.weights", "its parameters", WEIGHTS),
        Flag("--teacher-pretrained", "teacher.pretrained", "its parameters are torchvision's or timm's", SWITCH),
    ],
    "loss": [
        Flag(
            "--method",
            "method.name",
            "the student alone (teachers train so, too), KD, SemCKD, SemCKD of equal weights or of one pair of layers",
            {"choices": config.METHODS},
        ),
        Flag(
            "--pair",
            "method.pair",
            "student and teacher layer of method pair, from 0",
            _typed(whole(0, 10_000), nargs=2, metavar=("I", "J")),
        ),
        Flag("--beta", "method.beta", "weight of SemCKD", _typed(POSITIVE)),
        Flag("--ce-weight", "method.ce_weight", "weight of the cross-entropy", _typed(NOT_NEGATIVE)),
        Flag("--kd-weight", "method.kd_weight", "weight of KD, also beside SemCKD", _typed(NOT_NEGATIVE)),
        Flag("--temperature", "method.temperature", "of KD", _typed(POSITIVE)),
        Flag("--factor", "method.factor", "the attention is BATCH_SIZE / FACTOR wide", _typed(COUNT)),
        Flag("--soft", "method.soft", "temperature of the attention", _typed(POSITIVE)),
        Flag("--backend", "method.backend", "of SemCKD, such as cpu, triton, reference; the fastest by default", NAME),
    ],
    "data": [
        Flag("--data", "data.name", "digits, cifar100 or imagenet; the preset's by default", NAME),
        Flag("--data-root", "data.root", "folder of the data set", {"metavar": "DIR"}),
        Flag("--download", "data.download", "fetch the data set where it is missing", SWITCH),
        Flag("--workers", "data.workers", "processes that decode images, of each process", _typed(whole(0, 1024))),
        Flag("--image-size", "data.image_size", "side of the images; the data set's own by default", _typed(COUNT)),
        Flag("--augment", "data.augment", "random crops and flips", EITHER),
        Flag(
            "--skip-broken",
            "data.skip_broken",
            "leave out images that cannot be decoded, and count them; the first one stops the run by default",
            EITHER,
        ),
    ],
    "recipe": [
        Flag("--epochs", "recipe.epochs", "of training", _typed(COUNT)),
        Flag("--batch-size", "recipe.batch_size", "images a step, of each process", _typed(COUNT)),
        Flag("--accumulate", "recipe.accumulate", "steps between two updates of the parameters", _typed(COUNT)),
        Flag("--lr", "recipe.lr", "highest learning rate", _typed(POSITIVE)),
        Flag("--momentum", "recipe.momentum", "of SGD", _typed(NOT_NEGATIVE)),
        Flag("--weight-decay", "recipe.weight_decay", "of all parameters", _typed(NOT_NEGATIVE)),
        Flag("--schedule", "recipe.schedule", "of the learning rate", {"choices": config.SCHEDULES}),
        Flag(
            "--milestones",
            "recipe.milestones",
            "epochs after which schedule step multiplies by gamma",
            _typed(listed(COUNT), metavar="EPOCH,..."),
        ),
        Flag("--gamma", "recipe.gamma", "factor at a milestone", _typed(POSITIVE)),
        Flag("--warm-up", "recipe.warm_up", "share of the updates with a rising learning rate", _typed(NOT_NEGATIVE)),
        Flag("--seed", "recipe.seed", "of parameters, order and augmentation", _typed(SEED)),
    ],
    "hardware": [
        Flag("--device", "hardware.device", "cpu, cuda, cuda:1, ...; a GPU if there is one by default", NAME),
        Flag("--precision", "hardware.precision", "bf16 and fp16 are autocast", {"choices": config.PRECISIONS}),
        Flag("--channels-last", "hardware.channels_last", "memory format of networks and images", EITHER),
        Flag("--compile", "hardware.compile", "torch.compile student and teacher", EITHER),
        Flag("--cuda-graph", "hardware.cuda_graph", "the whole step as one CUDA graph", EITHER),
        Flag("--deterministic", "hardware.deterministic", "cuDNN algorithms that repeat bit for bit", EITHER),
        Flag("--threads", "hardware.threads", "of the CPU", _typed(whole(1, 4096))),
    ],
    "logging": [
        Flag("--log-every", "logging.log_every", "steps between two looks at the losses", _typed(whole(1, 100_000))),
        Flag(
            "--checkpoint-every",
            "logging.checkpoint_every",
            "steps between two checkpoints within an epoch; at its end only by default",
            _typed(COUNT, metavar="STEPS"),
        ),
        Flag("--tensorboard", "logging.tensorboard", "by default where it is installed", EITHER),
        Flag("--log-steps", "logging.steps", "losses of every step in steps.csv", EITHER),
    ],
}
