"""A teacher, and students distilled from it by several methods, all from the same seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semckd_kernels import SemCKD

from .config import Config
from .engine import History, evaluate, train
from .methods import Criterion
from .models import CIFAR_RESNET_LAYERS, FeatureNet, cifar_resnet
from .samples import DataSet, Split, batches

# (depth, width): small enough for a run of a minute or two on a CPU, and the student is 14 times smaller
TEACHER_SHAPE = (20, 16)
STUDENT_SHAPE = (8, 8)
# Two runs that differ by the backend alone: the first step has equal parameters, the second shows the gradients.
# Orders of summation give 1e-7 there, a gradient wrong by 1% gives 3e-4 (measured); from the third step on, training
# multiplies rounding errors, up to percents after some twenty steps.
COMPARED_STEPS = 2
COMPARED_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Method:
    """How one student is trained: weights of its loss terms (see :class:`.methods.Criterion`)."""

    title: str
    kd_weight: float = 0.0
    beta: float = 0.0
    backend: str | None = None


@dataclass(frozen=True)
class Attention:
    """The mean of alpha over samples, ``[S, T]``, with a name for each student and teacher layer."""

    student_layers: list[str]
    teacher_layers: list[str]
    weight: Tensor
    samples: int


@dataclass(frozen=True)
class Run:
    """A finished training run; ``attention`` where it was trained with SemCKD."""

    title: str
    net: str
    parameters: int
    accuracy: float
    seconds: float
    history: History
    attention: Attention | None = None


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference of the losses of two runs: in the first steps, and in all steps."""

    steps: int
    first_steps: float
    all_steps: float

    @property
    def holds(self) -> bool:
        return self.first_steps <= COMPARED_TOLERANCE


@dataclass(frozen=True)
class Results:
    """Everything that a finished experiment reports; ``runs`` by short name, in order."""

    config: Config
    runs: dict[str, Run]
    agreement: Agreement
    test_samples: int


def methods(config: Config) -> dict[str, Method]:
    """The students of an experiment by short name, in the order they are trained in."""
    return {
        "student": Method("student alone"),
        "kd": Method("KD", kd_weight=1.0),
        "semckd_reference": Method("SemCKD, reference", 1.0, config.beta, "reference"),
        "semckd": Method("SemCKD, ours", 1.0, config.beta, config.backend),
    }


def run(config: Config, data: DataSet, report: Callable[[str], None] = print) -> Results:
    """Trains the teacher and all students.

    Args:
        config: what to run with.
        data: samples on the device of ``config``.
        report: gets a line of text after each training run.
    """
    runs: dict[str, Run] = {}
    # convolutions that repeat, in full fp32: runs from one seed then differ by their loss alone
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        teacher = _network(TEACHER_SHAPE, data, config)
        runs["teacher"] = _fit("teacher", TEACHER_SHAPE, teacher, Criterion(), None, config, data)
        report(_summary(runs["teacher"]))
        for key, method in methods(config).items():
            student = _network(STUDENT_SHAPE, data, config)
            criterion = _criterion(method, student, teacher, config, data).to(config.device)
            runs[key] = _fit(method.title, STUDENT_SHAPE, student, criterion, teacher, config, data)
            report(_summary(runs[key]))
    agreement = compare(runs["semckd"].history.losses, runs["semckd_reference"].history.losses)
    return Results(config, runs, agreement, len(data.test.labels))


def compare(ours: list[float], reference: list[float]) -> Agreement:
    """Compares the losses of two runs step by step."""
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(ours, reference, strict=True)]
    # max() would pass over a NaN
    apart = [math.inf if math.isnan(x) else x for x in apart]
    return Agreement(min(COMPARED_STEPS, len(apart)), max(apart[:COMPARED_STEPS]), max(apart))


@torch.no_grad()
def mean_attention(
    student: FeatureNet, teacher: FeatureNet, semckd: SemCKD, samples: Split, batch_size: int
) -> Attention:
    """The mean of alpha over all samples, in fp64; each row adds up to 1.

    Alpha of a sample depends on the other samples of its batch: batches are taken in the order of the samples.
    """
    for module in (student, teacher, semckd):
        module.eval()
    total = torch.zeros(len(student.layers), len(teacher.layers), dtype=torch.float64)
    for images, _ in batches(samples, batch_size):
        total += semckd(student(images).maps, teacher(images).maps).weight.double().sum(0).cpu()
    student_layers, teacher_layers = (
        [f"{layer} ({c} x {h} x {w})" for layer, (c, h, w) in zip(net.layers, net.map_shapes(images), strict=True)]
        for net in (student, teacher)
    )
    count = len(samples.labels)
    return Attention(student_layers, teacher_layers, total / count, count)


def _network(shape: tuple[int, int], data: DataSet, config: Config) -> FeatureNet:
    """A fresh network; the seed is set here, so that all students start from the same parameters."""
    depth, width = shape
    torch.manual_seed(config.recipe.seed)
    net = cifar_resnet(depth, width, data.classes, in_channels=data.train.images.shape[1])
    return FeatureNet(net, CIFAR_RESNET_LAYERS).to(config.device)


def _criterion(method: Method, student: FeatureNet, teacher: FeatureNet, config: Config, data: DataSet) -> Criterion:
    semckd = None
    if method.beta:
        s_n, t_n = ([c for c, _, _ in net.map_shapes(data.train.images)] for net in (student, teacher))
        semckd = SemCKD(config.recipe.batch_size, s_n, t_n, backend=method.backend)
    return Criterion(1.0, method.kd_weight, config.temperature, method.beta, semckd)


def _fit(
    title: str,
    shape: tuple[int, int],
    net: FeatureNet,
    criterion: Criterion,
    teacher: FeatureNet | None,
    config: Config,
    data: DataSet,
) -> Run:
    """Trains and evaluates one network."""
    batch_size = config.recipe.batch_size
    start = time.perf_counter()
    history = train(
        net, criterion, data.train, config.recipe, teacher=teacher if criterion.needs_teacher else None, title=title
    )
    seconds = time.perf_counter() - start
    accuracy = evaluate(net, data.test, batch_size)
    attention = None
    if teacher is not None and criterion.semckd is not None:
        attention = mean_attention(net, teacher, criterion.semckd, data.test, batch_size)
    name = f"ResNet-{shape[0]}, width {shape[1]}"
    return Run(title, name, net.parameter_count(), accuracy, seconds, history, attention)


def _summary(run: Run) -> str:
    return f"{run.title}: {run.accuracy:.1%} of the test images right, trained in {run.seconds:.1f} s"
