"""The flags of ``semckd train``: what each sets in the configuration, its help with type and default, and its name."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from . import config, presets, schedules
from .methods import METHODS, Option
from .parser import COUNT, NOT_NEGATIVE, POSITIVE, SEED, listed, whole


class Flag(NamedTuple):
    """A flag of ``semckd train``.

    Attributes:
        name: with its dashes.
        sets: the dotted name of its value.
        help: what it does; the default is added by :func:`described`.
        options: further options of ``add_argument``.
        unset: what the value None stands for.
        also: names that other trainers give it, without dashes.
    """

    name: str
    sets: str
    help: str
    options: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)
    unset: str = ""
    also: tuple[str, ...] = ()


def _typed(kind: Callable[[str], Any], metavar: Any = "INT", **options: Any) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, **options}


INT, FLOAT, FLOAT_OR_0 = _typed(COUNT), _typed(POSITIVE, "FLOAT"), _typed(NOT_NEGATIVE, "FLOAT")
PATHS = _typed(listed(str), "PATH,...")
SWITCH: dict[str, Any] = {"action": "store_true"}
EITHER: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
WEIGHTS = {"metavar": "FILE_OR_RUN"}
NAME = {"metavar": "NAME"}

# what registered methods add is in groups()
FLAGS: dict[str, list[Flag]] = {
    "networks (`semckd info` lists names; also torchvision/NAME, timm/NAME, package.module:factory)": [
        Flag("--student", "student.name", "train this network", NAME, also=("model", "model-s", "arch", "network")),
        Flag("--student-layers", "student.layers", "distil into these modules' outputs", PATHS, "its stages"),
        Flag("--student-weights", "student.weights", "start from these parameters", WEIGHTS, "fresh ones"),
        Flag("--student-pretrained", "student.pretrained", "start from torchvision's or timm's parameters", SWITCH),
        Flag(
            "--teacher",
            "teacher.name",
            "learn from this network",
            NAME,
            "the network of the run that --teacher-weights names",
            ("model-t",),
        ),
        Flag("--teacher-layers", "teacher.layers", "distil from these modules' outputs", PATHS, "its stages"),
        Flag(
            "--teacher-weights",
            "teacher.weights",
            "load the teacher's parameters from this file or run",
            WEIGHTS,
            "none",
            ("path-t", "teacher-path", "teacher-checkpoint"),
        ),
        Flag("--teacher-pretrained", "teacher.pretrained", "load torchvision's or timm's parameters", SWITCH),
    ],
    "loss": [
        Flag(
            "--pair",
            "method.pair",
            "distil teacher layer J into student layer I, counted from 0; for method pair",
            _typed(whole(0, 10_000), ("I", "J"), nargs=2),
            "none",
        ),
        Flag("--beta", "method.beta", "multiply SemCKD by this weight", FLOAT),
        Flag("--ce-weight", "method.ce_weight", "multiply the cross-entropy by this weight", FLOAT_OR_0),
        Flag(
            "--kd-weight",
            "method.kd_weight",
            "multiply KD by this weight, also beside SemCKD",
            FLOAT_OR_0,
            also=("alpha",),
        ),
        Flag("--temperature", "method.temperature", "divide the logits of KD by this", FLOAT, also=("kd-t", "tau")),
        Flag("--kd-standardize", "method.kd_standardize", "standardize each sample's logits before KD", EITHER),
        Flag(
            "--label-smoothing",
            "method.label_smoothing",
            "give this share of each label to all classes alike, below 1",
            FLOAT_OR_0,
            also=("smoothing",),
        ),
        Flag("--factor", "method.factor", "make the attention BATCH_SIZE / INT wide", INT),
        Flag("--soft", "method.soft", "divide the attention's energies by this temperature", FLOAT),
        Flag(
            "--backend",
            "method.backend",
            "compute SemCKD by this backend, such as cpu, triton or reference",
            NAME,
            "the fastest",
        ),
    ],
    "data": [
        Flag(
            "--data",
            "data.name",
            "train on this data set: digits, cifar100, imagenet, folder (of images), timm:NAME, package.module:factory",
            NAME,
            also=("dataset",),
        ),
        Flag("--data-root", "data.root", "read the data set from this folder", {"metavar": "DIR"}, "none"),
        Flag("--download", "data.download", "fetch CIFAR-100, or data of timm, where it is missing", SWITCH),
        Flag(
            "--workers",
            "data.workers",
            "decode images in this many processes, for each training process",
            _typed(whole(0, 1024)),
            also=("num-workers",),
        ),
        Flag("--image-size", "data.image_size", "scale images to this side", INT, "the data set's own"),
        Flag(
            "--augment", "data.augment", "crop and flip training images at random; digits have no augmentation", EITHER
        ),
        Flag(
            "--skip-broken",
            "data.skip_broken",
            "leave out images that cannot be decoded, and count them; otherwise the first one stops the run",
            EITHER,
        ),
        Flag(
            "--train-fraction",
            "data.train_fraction",
            "train on this share of every class's images, up to 1, drawn by the seed",
            FLOAT,
        ),
        Flag(
            "--label-noise", "data.label_noise", "draw this share of the training labels anew, by the seed", FLOAT_OR_0
        ),
    ],
    "recipe": [
        Flag("--epochs", "recipe.epochs", "train for this many epochs", INT),
        Flag("--batch-size", "recipe.batch_size", "take this many images a step, in each process", INT),
        Flag(
            "--accumulate",
            "recipe.accumulate",
            "update the parameters once in this many steps",
            INT,
            also=("accumulation-steps", "gradient-accumulation"),
        ),
        Flag(
            "--lr",
            "recipe.lr",
            "train with this highest learning rate; preset cifar100 takes 0.01 for MobileNetV2 and the ShuffleNets",
            FLOAT,
            also=("learning-rate",),
        ),
        Flag(
            "--optimizer",
            "recipe.optimizer",
            "update the parameters by this optimizer of torch (adamw, rmsprop, ...) or by timm/NAME",
            NAME,
            also=("opt",),
        ),
        Flag("--momentum", "recipe.momentum", "average SGD's gradients with this momentum, below 1", FLOAT_OR_0),
        Flag(
            "--betas",
            "recipe.betas",
            "average gradients and their squares with these factors below 1; for adamw and its kin",
            _typed(listed(NOT_NEGATIVE), "FLOAT,..."),
            "the optimizer's own",
            ("opt-betas",),
        ),
        Flag(
            "--eps",
            "recipe.eps",
            "keep quotients finite by this; for adamw and its kin",
            FLOAT,
            "its own",
            ("opt-eps",),
        ),
        Flag(
            "--weight-decay",
            "recipe.weight_decay",
            "decay all parameters by this factor",
            FLOAT_OR_0,
            also=("wd", "l2"),
        ),
        Flag("--decay-all", "recipe.decay_all", "decay biases and the parameters of norms, too", EITHER),
        Flag(
            "--clip-grad",
            "recipe.clip_grad",
            "scale the gradients of an update down to this norm, taken over all of them",
            FLOAT,
            "none",
            ("clip-grad-norm", "max-grad-norm", "gradient-clip-val"),
        ),
        Flag(
            "--ema",
            "recipe.ema",
            "evaluate and hand on a moving average of the student's weights of this decay, such as 0.999; 0: none",
            FLOAT_OR_0,
            also=("model-ema", "model-ema-decay"),
        ),
        Flag(
            "--schedule",
            "recipe.schedule",
            "lower the learning rate at milestones, by half a cosine, or by a scheduler of torch or timm",
            {"choices": tuple(schedules.KNOWN)},
            also=("scheduler", "lr-schedule"),
        ),
        Flag(
            "--milestones",
            "recipe.milestones",
            "multiply the learning rate by gamma after these epochs; for schedule step and its kin",
            _typed(listed(COUNT), "EPOCH,..."),
            also=("lr-decay-epochs",),
        ),
        Flag(
            "--gamma",
            "recipe.gamma",
            "multiply the learning rate by this factor at a milestone",
            FLOAT,
            also=("lr-decay-rate",),
        ),
        Flag(
            "--warm-up",
            "recipe.warm_up",
            "raise the learning rate over this share of all updates, from 0 to below 1",
            FLOAT_OR_0,
            also=("warmup-epochs",),
        ),
        Flag("--min-lr", "recipe.min_lr", "end at this learning rate; for schedule cosine and its kin", FLOAT_OR_0),
        Flag("--seed", "recipe.seed", "draw parameters, order and augmentation from this seed", _typed(SEED)),
    ],
    "hardware": [
        Flag(
            "--device",
            "hardware.device",
            "compute on this device: cpu, cuda, cuda:1, ... or auto, a GPU if there is one (default: auto)",
            NAME,
            also=("gpu", "gpu-id", "cuda"),
        ),
        Flag(
            "--precision",
            "hardware.precision",
            "compute in this format; bf16 and fp16 by autocast",
            {"choices": config.PRECISIONS},
            also=("dtype", "amp"),
        ),
        Flag("--channels-last", "hardware.channels_last", "store networks and images channels last", EITHER),
        Flag("--compile", "hardware.compile", "compile student and teacher with torch.compile", EITHER),
        Flag(
            "--prepare-teacher",
            "hardware.prepare_teacher",
            "put the teacher's BatchNorms, ReLUs and additions into its convolutions: the same to rounding, faster",
            EITHER,
        ),
        Flag("--cuda-graph", "hardware.cuda_graph", "replay the whole step as one CUDA graph", EITHER),
        Flag("--deterministic", "hardware.deterministic", "use cuDNN algorithms that repeat bit for bit", EITHER),
        Flag(
            "--threads", "hardware.threads", "use this many CPU threads", _typed(whole(1, 4096)), "torch's own number"
        ),
    ],
    "logging": [
        Flag(
            "--log-every",
            "logging.log_every",
            "read the losses from the device every INT steps",
            _typed(whole(1, 100_000)),
            also=("print-freq",),
        ),
        Flag(
            "--checkpoint-every",
            "logging.checkpoint_every",
            "write a checkpoint every INT steps within an epoch",
            INT,
            "at the end of epochs only",
            ("save-freq",),
        ),
        Flag("--tensorboard", "logging.tensorboard", "write files for TensorBoard", EITHER, "where it is installed"),
        Flag(
            "--tracker",
            "logging.tracker",
            "send metrics to Weights & Biases or MLflow, as their variables of the environment say",
            {"choices": config.TRACKERS},
            also=("report-to", "log-with", "wandb", "mlflow"),
        ),
        Flag("--log-steps", "logging.steps", "write the losses of every step to steps.csv", EITHER),
    ],
}
# names that other trainers give to flags which are no part of the configuration
OTHER_NAMES = {"output": "--out", "output-dir": "--out", "save-dir": "--out"}
# parts of a configuration that no flag sets
NO_FLAG = {"hardware.world_size": "the number of processes"}

# arguments of data sets and criterion, by the value that is given for them
ARGUMENTS = {
    "batch_size": "recipe.batch_size",
    "image_size": "data.image_size",
    "data": "data.name",
    "root": "data.root",
    "download": "data.download",
    "workers": "data.workers",
    "train_fraction": "data.train_fraction",
    "label_noise": "data.label_noise",
    "seed": "recipe.seed",
    "backend": "method.backend",
    "pair": "method.pair",
    "accumulate": "recipe.accumulate",
}


def groups() -> dict[str, list[Flag]]:
    """All flags by group: :data:`FLAGS`, the choice of a method, and the options that methods bring along."""
    helps = ", ".join(f"{name} {method.help}" for name, method in METHODS.items()).replace("%", "%%")
    choices = {"choices": tuple(METHODS)}
    method = Flag("--method", "method.name", f"choose the loss: {helps}", choices, also=("distill", "loss"))
    options = dict.fromkeys(option for record in METHODS.values() for option in record.options)
    return {**FLAGS, "loss": [method, *FLAGS["loss"], *map(_of_option, options)]}


def by_name() -> dict[str, Flag]:
    """All flags by the dotted name of the value that they set."""
    return {flag.sets: flag for flags in groups().values() for flag in flags}


def _of_option(option: Option) -> Flag:
    text = f"{option.help} (default: {written(option.default)})".replace("%", "%%")
    return Flag(f"--{option.name.replace('_', '-')}", f"method.{option.name}", text, _of_type(option))


def _of_type(option: Option) -> dict[str, Any]:
    """What the parser is told of an option's values."""
    if isinstance(option.default, bool):
        return EITHER
    if isinstance(option.default, str):
        return {"metavar": "TEXT"}
    if isinstance(option.default, int):
        return _typed(whole(0 if option.zero else 1, 1_000_000_000))
    return FLOAT_OR_0 if option.zero else FLOAT


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    """Values of each preset by dotted name, that of the default preset first."""
    return {name: config.flatten(presets.preset(name, "NAME")) for name in presets.NAMES}


def written(value: Any, unset: str = "none") -> str:
    """A value as the command line writes it."""
    if value is None:
        return unset
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def described(flag: Flag) -> str:
    """The help of a flag with its default, and the presets that have another one."""
    if "(default: " in flag.help or flag.sets == "student.name":
        return flag.help
    values = {name: written(of.get(flag.sets), flag.unset) for name, of in _presets().items()}
    if flag.options.get("action") == "store_true":
        # the teacher, which no preset has, has no value yet
        values = dict.fromkeys(values, "off")
    first = values[presets.NAMES[0]]
    others = "".join(f"; {name}: {value}" for name, value in values.items() if value != first)
    return f"{flag.help} (default: {first}{others})"


def flag_name(dotted: str) -> str:
    """The flag that sets a value, such as ``--lr`` for ``recipe.lr``; its dotted name where there is none."""
    flags = by_name()
    return flags[dotted].name if dotted in flags else NO_FLAG.get(dotted, dotted)


def in_flags(message: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """A message of the library with its fields and arguments named as the flags that set them.

    Args:
        message: a sentence.
        more: names of further arguments, and of fields that no flag has set, by the argument's or the dotted name.
    """
    # a process that is about to be ended says what happened in milliseconds: expressions take longer to compile
    fields = {**{dotted: flag.name for dotted, flag in by_name().items()}, **NO_FLAG, **more}
    for dotted in (name for name in fields if "." in name and name in message):
        # between backquotes it is a field of a file
        message = re.sub(rf"(?<![\w.`]){re.escape(dotted)}(?![\w.])", _literally(fields[dotted]), message)
    arguments = {**{name: fields[dotted] for name, dotted in ARGUMENTS.items()}, **more}
    for argument in (argument for argument in arguments if argument in message):
        # a word of the language is an argument only where a sentence begins with it
        place = rf"(?<![\w.'`-]){argument}(?![\w.'-])" if "_" in argument else rf"^{argument}(?= (?:must|is for)\b)"
        message = re.sub(place, _literally(arguments[argument]), message)
    return message


def _literally(text: str) -> Callable[[re.Match[str]], str]:
    """A replacement whose backslashes, as of a file's name, stand for themselves."""
    return lambda match: text
