"""Everything that a training run is made with: frozen dataclasses, their checks, and JSON in and out.

``TrainConfig`` is what ``config.json`` of a run folder holds, together with ``"format": 1``. ``presets`` has the
paper's recipes, ``arguments`` the flags of ``semckd train``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
_KD = ("kd_weight", "temperature", "kd_standardize")
# what each method uses of MethodConfig
METHOD_FIELDS = {
    "ce": ("ce_weight",),
    "kd": ("ce_weight", *_KD),
    "semckd": ("ce_weight", *_KD, "beta", "factor", "soft", "backend"),
    # an attention that is switched off, or whose softmax is over one layer, has neither width nor temperature
    "equal": ("ce_weight", *_KD, "beta", "backend"),
    "pair": ("ce_weight", *_KD, "beta", "backend", "pair"),
}
METHODS = tuple(METHOD_FIELDS)
SCHEDULES = ("step", "cosine")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


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
    # leave out images that cannot be decoded; runs of earlier versions lack the field
    skip_broken: bool = field(default=False, metadata={"may_be_missing": True})


@dataclass(frozen=True)
class MethodConfig:
    """The loss: see ``methods``. What a method does not use is ignored."""

    name: str = "ce"
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    temperature: float = 4.0
    beta: float = 400.0
    # student layer and teacher layer of the method "pair", counted from 0
    pair: tuple[int, int] | None = None
    # of SemCKD: the attention's width is batch_size // factor, soft its temperature
    factor: int = 4
    soft: float = 1.0
    # None takes the fastest
    backend: str | None = None
    # KD of z-scores of the logits; runs of earlier versions lack the field
    kd_standardize: bool = field(default=False, metadata={"may_be_missing": True})

    @property
    def needs_teacher(self) -> bool:
        return self.name != "ce"


@dataclass(frozen=True)
class RecipeConfig:
    """How parameters are trained: SGD with momentum, learning rate by ``schedule.factor``.

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
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of :meth:`TrainConfig.to_dict`, for lists and tuples alike.

    Raises:
        ValueError: another format, a field that does not exist, is missing or of another type.
    """
    values = dict(values)
    if (found := values.pop("format", None)) != FORMAT:
        raise ValueError(f"config: format must be {FORMAT}, got {found!r}")
    config = _parse(TrainConfig, values, "config")
    assert isinstance(config, TrainConfig)
    return config


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
                yield from walk(getattr(value, item.name), f"{name}.{item.name}" if name else item.name)
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
        whole[head] = dataclasses.replace(part, **values)
    return dataclasses.replace(config, **whole)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as a field's type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = {item.name for item in dataclasses.fields(kind)}
        may_be_missing = {item.name for item in dataclasses.fields(kind) if item.metadata.get("may_be_missing")}
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a group of fields, got {value!r}")
        if wrong := sorted(known.symmetric_difference(value) - (may_be_missing - value.keys())):
            raise ValueError(f"{where}.{wrong[0]} {'is missing' if wrong[0] in known else 'is not a field'}")
        return kind(**{name: _parse(hints[name], value[name], f"{where}.{name}") for name in value})  # type: ignore[operator]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = next(part for part in typing.get_args(kind) if part is not type(None))
        return None if value is None else _parse(inner, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_parse(typing.get_args(kind)[0], item, where) for item in value)
    # JSON does not tell 1 from 1.0, and Python takes True for 1
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return kind(value)


def _check_values(config: TrainConfig) -> None:
    """Each value by itself."""
    values = flatten(config)
    for name, choices in (
        ("method.name", METHODS),
        ("recipe.schedule", SCHEDULES),
        ("hardware.precision", PRECISIONS),
    ):
        if values[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{values[name]}'")
    whole = ("recipe.epochs", "recipe.batch_size", "recipe.accumulate", "method.factor", "hardware.world_size")
    for name in (*whole, "hardware.threads", "logging.log_every", "logging.checkpoint_every", "data.image_size"):
        if values[name] is not None and values[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {values[name]}")
    for name in ("data.workers", "recipe.seed"):
        if values[name] < 0:
            raise ValueError(f"{name} must be at least 0, got {values[name]}")
    for name in ("recipe.lr", "recipe.gamma", "method.temperature", "method.beta", "method.soft"):
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {values[name]}")
    for name in ("recipe.weight_decay", "method.ce_weight", "method.kd_weight"):
        if not (math.isfinite(values[name]) and values[name] >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {values[name]}")
    _check_shares(config.recipe)
    if list(config.recipe.milestones) != sorted(set(config.recipe.milestones)):
        raise ValueError(f"recipe.milestones must be epochs in ascending order, got {list(config.recipe.milestones)}")


def _check_shares(recipe: RecipeConfig) -> None:
    """Numbers from 0 to below 1."""
    if not 0 <= recipe.momentum < 1:
        raise ValueError(f"recipe.momentum must be from 0 to below 1, got {recipe.momentum:g}")
    if not 0 <= recipe.warm_up < 1:
        # the usual mistake is a number of epochs
        warm, epochs = recipe.warm_up, recipe.epochs
        hint = f": {warm:g} of {epochs} epochs are {warm / epochs:.3g}" if 1 <= warm < epochs else ""
        raise ValueError(f"recipe.warm_up must be a share of all updates, from 0 to below 1, got {warm:g}{hint}")


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
    if method.name == "pair" and (method.pair is None or len(method.pair) != 2):
        raise ValueError("method 'pair' needs --pair I J: a student layer and a teacher layer, counted from 0")
    if method.name != "pair" and method.pair is not None:
        raise ValueError(f"--pair belongs to method 'pair', got method '{method.name}'")
    # beside SemCKD both may be 0: features alone are distilled
    trains = {"ce": method.ce_weight, "kd": method.kd_weight}.get(method.name, 1.0)
    if not trains:
        weight = f"method.{method.name}_weight"
        other = "" if method.name == "ce" else ", or method 'ce' without a teacher"
        raise ValueError(f"{weight} must be above 0 with method '{method.name}', got 0: give a weight{other}")
    batch_size = config.recipe.batch_size
    if method.name == "semckd" and method.factor > batch_size:
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
    if hardware.world_size > 1:
        raise ValueError(f"a CUDA graph serves one process, got {hardware.world_size}")
