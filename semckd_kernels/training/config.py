"""Everything that a training run is made with: frozen dataclasses, their checks, and JSON in and out.

``TrainConfig`` is what ``config.json`` of a run folder holds, together with ``"format": 1``; ``methods`` has its part
``MethodConfig``. ``presets`` has the paper's recipes, ``flags`` the flags of ``semckd train``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import optimizers, schedules
from .methods import METHODS, MethodConfig, Option
from .values import typed

FORMAT = 1
TRACKERS = ("none", "wandb", "mlflow")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# what every config.json has; a field that came later may be missing there
_MODEL = "name layers weights pretrained"
FIRST_FIELDS = {
    "student": _MODEL,
    "teacher": _MODEL,
    "method": "name ce_weight kd_weight temperature beta pair factor soft backend",
    "data": "name root workers download image_size augment",
    "recipe": "epochs batch_size accumulate lr momentum weight_decay schedule milestones gamma warm_up seed",
    "hardware": "device precision channels_last compile cuda_graph deterministic threads world_size",
    "logging": "log_every checkpoint_every tensorboard steps",
}


@dataclass(frozen=True)
class ModelConfig:
    """A network: what ``models.build`` takes, and where its parameters come from."""

    name: str
    # module paths; None takes the family's default
    layers: tuple[str, ...] | None = None
    # a file, or the folder of a finished run
    weights: str | None = None
    # of torchvision or timm
    pretrained: bool = False


@dataclass(frozen=True)
class DataConfig:
    """A data set: what ``data.build`` takes."""

    name: str = "digits"
    root: str | None = None
    workers: int = 0
    download: bool = False
    # side of the images; None takes the data set's own
    image_size: int | None = None
    augment: bool = True
    # leave out images that cannot be decoded
    skip_broken: bool = False
    # share of the training samples, of every class alike, and of their labels that are drawn anew
    train_fraction: float = 1.0
    label_noise: float = 0.0


@dataclass(frozen=True)
class RecipeConfig:
    """How parameters are trained: by a recipe of the paper SGD with momentum, and a learning rate in steps.

    ``batch_size`` is per process: the attention compares the samples of one process. A step is one batch of every
    process; ``accumulate`` steps make an update of the parameters.
    """

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    # epochs after which the learning rate of schedule "step" is multiplied by gamma
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    # share of all updates over which the learning rate rises linearly
    warm_up: float = 0.0
    seed: int = 0
    # see optimizers, whose own betas and eps None takes
    optimizer: str = "sgd"
    betas: tuple[float, ...] | None = None
    eps: float | None = None
    # biases and the parameters of norms too
    decay_all: bool = True
    # of schedules that end at one
    min_lr: float = 0.0
    # the largest norm of all gradients together; None clips none
    clip_grad: float | None = None
    # decay of the moving average of the student's weights; 0 takes none
    ema: float = 0.0


@dataclass(frozen=True)
class HardwareConfig:
    """Where and how steps are computed."""

    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    # algorithms of cuDNN that repeat bit for bit
    deterministic: bool = False
    # of the CPU; None leaves torch's own number
    threads: int | None = None
    # processes, by torchrun
    world_size: int = 1
    # fold the teacher's BatchNorms; runs of earlier versions did not
    prepare_teacher: bool = False


@dataclass(frozen=True)
class LoggingConfig:
    """How often something is written. Steps are counted in batches."""

    # steps between two looks at the device: losses to the host, NaN check, agreement of processes
    log_every: int = 20
    # steps between two checkpoints in mid-epoch; None writes at the end of epochs only
    checkpoint_every: int | None = None
    # None: where the package is installed
    tensorboard: bool | None = None
    # loss terms of every step in steps.csv
    steps: bool = False
    # a service that gets metrics, too
    tracker: str = "none"


@dataclass(frozen=True)
class TrainConfig:
    """One training run; raises ValueError in one sentence where values make no sense by themselves or together."""

    student: ModelConfig
    teacher: ModelConfig | None = None
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        _check_values(self)
        _check_method(self)
        _check_hardware(self)

    @property
    def global_batch_size(self) -> int:
        """Images between two updates of the parameters, over all processes."""
        return self.recipe.batch_size * self.recipe.accumulate * self.hardware.world_size

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["method"] |= values["method"].pop("own")
        return {"format": FORMAT, **values}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def fields(options: Iterable[Option] = ()) -> dict[str, Any]:
    """The type of every field by its dotted name, with those of options that methods bring along."""
    found: dict[str, Any] = {}
    for group, kind in typing.get_type_hints(TrainConfig).items():
        if typing.get_args(kind):
            # the one group that may be absent
            kind, found[group] = typing.get_args(kind)[0], type(None)
        beside = {item.name for item in dataclasses.fields(kind) if item.metadata.get("beside")}
        hints = typing.get_type_hints(kind)
        found |= {f"{group}.{name}": hint for name, hint in hints.items() if name not in beside}
    return found | {f"method.{option.name}": type(option.default) for option in options}


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of :meth:`TrainConfig.to_dict`, for lists and tuples alike.

    A field that the first version of the format did not have takes its default where it is missing, and so does an
    option that a method brings along.

    Raises:
        ValueError: another format, a field that does not exist, is missing or of another type.
    """
    values = dict(values)
    check_format(values.pop("format", None))
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    if isinstance(name, str) and name not in METHODS:
        # before its options are: a program may have registered the method that wrote this
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got '{name}'")
    found = typed(fields(METHODS[name].options if isinstance(name, str) else ()), values, "config.{}")
    for group, names in FIRST_FIELDS.items():
        missing = [field_name for field_name in names.split() if f"{group}.{field_name}" not in found]
        if missing and group not in found:
            place = f"{group}.{missing[0]}" if group in values else group
            raise ValueError(f"config.{place} is missing")
    return replace(TrainConfig(ModelConfig("")), **found)


def check_format(found: Any) -> None:
    """Raises ValueError where a configuration is of another format than this version's."""
    if found != FORMAT:
        raise ValueError(f"config: format must be {FORMAT}, got {found!r}")


def load(path: Path) -> TrainConfig:
    """Reads a ``config.json``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error
    try:
        return from_dict(values)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"'{path}' is not the configuration of a run: {error}") from error


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Values by dotted name, such as ``recipe.lr``; an absent teacher is one value None."""

    def walk(value: Any, name: str) -> typing.Iterator[tuple[str, Any]]:
        if dataclasses.is_dataclass(value):
            for item in dataclasses.fields(value):
                inner = getattr(value, item.name)
                for key, part in inner.items() if item.metadata.get("beside") else [(item.name, inner)]:
                    yield from walk(part, f"{name}.{key}" if name else key)
        else:
            yield name, value

    return dict(walk(config, ""))


def replace(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The configuration with values replaced by dotted name: ``replace(config, **{"recipe.lr": 0.1})``."""
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, value in changes.items():
        head, _, tail = name.partition(".")
        if tail:
            parts.setdefault(head, {})[tail] = value
        else:
            whole[head] = value
    for head, values in parts.items():
        part = whole.get(head, getattr(config, head))
        if part is None:
            # the one part that may be absent
            part = ModelConfig(name="")
        if isinstance(part, MethodConfig):
            values = _with_own(part, values)
        whole[head] = dataclasses.replace(part, **values)
    return dataclasses.replace(config, **whole)


def _with_own(method: MethodConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Values for a method's fields, those for options that methods bring along in ``own``."""
    names = {option.name for record in METHODS.values() for option in record.options}
    own = {name: value for name, value in values.items() if name in names}
    return {**{name: value for name, value in values.items() if name not in own}, "own": {**method.own, **own}}


def _check_values(config: TrainConfig) -> None:
    """Each value by itself."""
    values = flatten(config)
    for name, choices in (
        ("method.name", tuple(METHODS)),
        ("hardware.precision", PRECISIONS),
        ("logging.tracker", TRACKERS),
    ):
        if values[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{values[name]}'")
    optimizers.check(config.recipe.optimizer)
    schedules.check(config.recipe.schedule)
    whole = ("recipe.epochs", "recipe.batch_size", "recipe.accumulate", "method.factor", "hardware.world_size")
    for name in (*whole, "hardware.threads", "logging.log_every", "logging.checkpoint_every", "data.image_size"):
        if values[name] is not None and values[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {values[name]}")
    for name in ("data.workers", "recipe.seed"):
        if values[name] < 0:
            raise ValueError(f"{name} must be at least 0, got {values[name]}")
    positive = ("recipe.lr", "recipe.gamma", "method.temperature", "method.beta", "method.soft")
    for name in (*positive, "recipe.eps", "recipe.clip_grad"):
        if values[name] is not None and not (math.isfinite(values[name]) and values[name] > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {values[name]}")
    for name in ("recipe.weight_decay", "recipe.min_lr", "method.ce_weight", "method.kd_weight"):
        if not (math.isfinite(values[name]) and values[name] >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {values[name]}")
    for option in config.method.record.options:
        option.check(config.method.own[option.name])
    if not 0 <= config.method.label_smoothing < 1:
        raise ValueError(f"method.label_smoothing must be from 0 to below 1, got {config.method.label_smoothing:g}")
    _check_shares(config.recipe)
    _check_draw(config.data)
    if list(config.recipe.milestones) != sorted(set(config.recipe.milestones)):
        raise ValueError(f"recipe.milestones must be epochs in ascending order, got {list(config.recipe.milestones)}")


def _check_shares(recipe: RecipeConfig) -> None:
    """Numbers from 0 to below 1."""
    for name in ("momentum", "ema"):
        if not 0 <= (value := getattr(recipe, name)) < 1:
            raise ValueError(f"recipe.{name} must be from 0 to below 1, got {value:g}")
    if recipe.betas is not None and not all(0 <= beta < 1 for beta in recipe.betas):
        raise ValueError(f"recipe.betas must be from 0 to below 1, got {', '.join(map(str, recipe.betas))}")
    if recipe.min_lr > recipe.lr:
        raise ValueError(f"recipe.min_lr must be at most recipe.lr, {recipe.lr:g}, got {recipe.min_lr:g}")
    if not 0 <= recipe.warm_up < 1:
        # the usual mistake is a number of epochs
        warm, epochs = recipe.warm_up, recipe.epochs
        hint = f": {warm:g} of {epochs} epochs are {warm / epochs:.3g}" if 1 <= warm < epochs else ""
        raise ValueError(f"recipe.warm_up must be a share of all updates, from 0 to below 1, got {warm:g}{hint}")


def _check_draw(data: DataConfig) -> None:
    """The usual mistake is a number of percent."""
    fraction, noise = data.train_fraction, data.label_noise
    for name, value, low in (("train_fraction", fraction, "above 0"), ("label_noise", noise, "from 0")):
        if not 0 <= value <= 1 or (name == "train_fraction" and not value):
            hint = f": {value:g}% are {value / 100:g}" if 1 < value <= 100 else ""
            raise ValueError(f"data.{name} must be a share {low} to 1, got {value:g}{hint}")


def _check_method(config: TrainConfig) -> None:
    method, teacher = config.method, config.teacher
    if method.needs_teacher and teacher is None:
        raise ValueError(f"method '{method.name}' needs a teacher: give --teacher and --teacher-weights")
    if not method.needs_teacher and teacher is not None:
        raise ValueError(f"method '{method.name}' takes no teacher, got '{teacher.name}'")
    if teacher is not None and not (teacher.weights or teacher.pretrained):
        raise ValueError(
            f"teacher '{teacher.name}' has no parameters to teach with: give --teacher-weights FILE_OR_RUN or "
            "--teacher-pretrained"
        )
    uses_pair = "pair" in method.record.fields
    if uses_pair and (method.pair is None or len(method.pair) != 2):
        raise ValueError(
            f"method '{method.name}' needs --pair I J: a student layer and a teacher layer, counted from 0"
        )
    if not uses_pair and method.pair is not None:
        owners = ", ".join(f"'{name}'" for name, record in METHODS.items() if "pair" in record.fields)
        raise ValueError(f"--pair belongs to method {owners}, got method '{method.name}'")
    # beside it the others may be 0: features alone are distilled
    weight = method.record.terms[-1].weight_name
    if not method.value(weight):
        other = ", or method 'ce' without a teacher" if method.needs_teacher else ""
        raise ValueError(f"method.{weight} must be above 0 with method '{method.name}', got 0: give a weight{other}")
    batch_size = config.recipe.batch_size
    if "factor" in method.record.fields and method.factor > batch_size:
        raise ValueError(
            f"method.factor must be at most recipe.batch_size, got {method.factor} for {batch_size} images: the "
            "attention is batch size / factor wide"
        )


def _check_hardware(config: TrainConfig) -> None:
    """Combinations that cannot work; ``cuda`` stands for any GPU that torch calls so."""
    hardware = config.hardware
    on_gpu = hardware.device.startswith("cuda")
    if hardware.precision in ("fp16", "tf32") and not on_gpu:
        raise ValueError(f"precision {hardware.precision} needs a GPU, got device '{hardware.device}': bf16 works")
    if not hardware.cuda_graph:
        return
    if not on_gpu:
        raise ValueError(f"a CUDA graph needs a GPU, got device '{hardware.device}'")
    if config.recipe.accumulate > 1:
        raise ValueError(f"a CUDA graph holds one whole update: accumulate must be 1, got {config.recipe.accumulate}")
    if hardware.precision == "fp16":
        raise ValueError("a CUDA graph cannot hold the gradient scaler of precision fp16: bf16 works there")
    if (name := config.recipe.optimizer).lower() not in optimizers.FUSED:
        raise ValueError(f"a CUDA graph holds an optimizer of {', '.join(optimizers.FUSED)} only, got '{name}'")
    if hardware.world_size > 1:
        raise ValueError(f"a CUDA graph serves one process, got {hardware.world_size}")
