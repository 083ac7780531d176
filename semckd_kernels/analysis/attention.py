"""The learned attention of a run: mean over the test images, by class, and over the epochs of its training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import SemCKD
from ..training.data import Batch
from ..training.methods import METHODS, softmax_temperature
from ..training.models import FeatureNet
from ..training.parser import either
from ..training.report import attention_figures, charts
from ..training.report.attention_bound import bound_note, upper_bound
from ..training.report.attention_figures import AttentionHistory
from ..training.report.report import layer_labels
from ..training.run.folder import RunFolder
from .runs import Result, csv_bytes, evaluation, json_bytes, table

WIDTH = 6.4
# more classes than this have their numbers in the CSV file only
MOST_CLASSES = 100
TITLE_EPOCHS = "Attention over the epochs of training, mean over training batches"
DEPENDS = "the attention of a sample depends on the other samples of its batch"


@dataclass(frozen=True)
class MeanAttention:
    """Mean of alpha over samples, fp64; each row adds up to 1."""

    weight: Tensor  # [S, T]
    samples: int
    by_class: Tensor  # [classes, S, T], NaN for a class without samples


@torch.no_grad()
def mean_attention(
    student: FeatureNet, teacher: FeatureNet, semckd: SemCKD, batches: Iterable[Batch], classes: int
) -> MeanAttention:
    """The mean attention over all samples, and over those of each class.

    Alpha of a sample depends on the other samples of its batch: other batches, or another order, give other values.
    Networks and criterion are evaluated in eval mode and left in the mode they had.

    Args:
        student, teacher: their maps are what ``semckd`` was built for.
        semckd: the trained criterion.
        batches: of at most the size that the attention was built for.
        classes: labels are below it.

    Raises:
        ValueError: there is no sample.
    """
    total = torch.zeros(classes, semckd.s_len, semckd.t_len, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    with evaluation(student, teacher, semckd):
        for images, labels in batches:
            weight = semckd(student(images).maps, teacher(images).maps).weight.double().cpu()
            total.index_add_(0, labels.cpu(), weight)
            counts += labels.cpu().bincount(minlength=classes)
    if not counts.any():
        raise ValueError("batches must hold at least one sample, got none")
    return MeanAttention(total.sum(0) / counts.sum(), int(counts.sum()), total / counts[:, None, None])


def check(folder: RunFolder) -> None:
    """Raises ValueError where a run has no attention to look at."""
    method = folder.config.method.record
    if not method.has_attention:
        learned = (f"'{name}'" for name, other in METHODS.items() if other.association == "attention")
        raise ValueError(
            f"'{folder.path}' was trained with method '{method.name}', which has no attention: give a run of "
            f"{either(list(learned))}"
        )


def analyze(folder: RunFolder, which: str = "best", device: str = "cpu", by_class: bool = False) -> Result:
    """The attention of a finished run, as pictures and tables.

    Args:
        folder: of a run with an attention.
        which: checkpoint, ``"best"`` or ``"last"``.
        device: where to compute.
        by_class: also the mean over the images of each class.

    Raises:
        ValueError, OSError, CheckpointError: the run has no attention, or cannot be loaded.
    """
    check(folder)
    run = folder.load(device, which)
    assert run.teacher is not None
    assert run.criterion.attention is not None
    found = mean_attention(run.student, run.teacher, run.criterion.attention, run.data.test_batches(), run.data.classes)
    summary = folder.summary
    student, teacher = (
        layer_labels(net.layers, summary, side) for net, side in ((run.student, "student"), (run.teacher, "teacher"))
    )
    weight = found.weight.numpy()
    title = f"SemCKD attention, {which} checkpoint, mean over {found.samples:,} test images"
    names = list(run.student.layers), list(run.teacher.layers)
    pairs = [(i, j) for i in range(len(student)) for j in range(len(teacher))]
    soft = softmax_temperature(folder.config.method)
    files = {
        **charts.pictures("attention", attention_figures.heat_map(weight, student, teacher, WIDTH, title, soft)),
        "attention.csv": csv_bytes(
            ("student_layer", "teacher_layer", "weight"), [(names[0][i], names[1][j], weight[i, j]) for i, j in pairs]
        ),
        "attention.json": json_bytes(
            {
                "checkpoint": which,
                "samples": found.samples,
                "batch_size": folder.config.recipe.batch_size,
                "note": DEPENDS,
                "student_layers": student,
                "teacher_layers": teacher,
                "weight": weight.tolist(),
                "upper_bound": upper_bound(len(teacher), soft),
            }
        ),
    }
    files |= _over_epochs(folder, student, teacher)
    if by_class:
        files |= _by_class(found.by_class, run.data.class_names, student, teacher)
    rows = [[name, *(f"{x:.3f}" for x in row)] for name, row in zip(student, weight, strict=True)]
    size = folder.config.recipe.batch_size
    text = f"{title}, in batches of {size} ({DEPENDS})\n\n" + table(["student / teacher", *teacher], rows)
    if note := bound_note(weight, soft):
        text += f"\n\n{note}"
    return Result(text, files)


def _over_epochs(folder: RunFolder, student: list[str], teacher: list[str]) -> dict[str, bytes]:
    """The attention that training went through; nothing where there was one epoch only."""
    history = folder.attention()
    if history is None or len(history.epochs) < 2:
        return {}
    soft = softmax_temperature(folder.config.method)
    drawn = AttentionHistory(history.epochs, student, teacher, history.weight.numpy(), soft)
    rows = [
        (epoch, history.student_layers[i], history.teacher_layers[j], float(history.weight[n, i, j]))
        for n, epoch in enumerate(history.epochs)
        for i in range(len(student))
        for j in range(len(teacher))
    ]
    return {
        **charts.pictures("attention_epochs", attention_figures.curves(drawn, WIDTH, TITLE_EPOCHS)),
        "attention_epochs.csv": csv_bytes(("epoch", "student_layer", "teacher_layer", "weight"), rows),
    }


def _by_class(weight: Tensor, names: tuple[str, ...], student: list[str], teacher: list[str]) -> dict[str, bytes]:
    """Classes by teacher layers, a panel for each student layer."""
    short_s, short_t = ([attention_figures.short(name) for name in side] for side in (student, teacher))
    rows = [
        (names[c], short_s[i], short_t[j], None if value.isnan() else float(value))
        for c, of_class in enumerate(weight)
        for i, row in enumerate(of_class)
        for j, value in enumerate(row)
    ]
    files = {"attention_classes.csv": csv_bytes(("class", "student_layer", "teacher_layer", "weight"), rows)}
    if len(names) > MOST_CLASSES:
        return files
    with charts.style():
        width = 1.2 + len(student) * max(1.6, 0.6 * len(teacher))
        figure = charts.new(width, 1.3 + 0.22 * len(names))
        panels = figure.subplots(1, len(student), squeeze=False, sharey=True)[0]
        for axes, name, values in zip(panels, short_s, weight.unbind(1), strict=True):
            mesh = charts.heat_map(axes, values.numpy(), names, short_t, charts.Scale(1.0))
            axes.set_title(f"student {name}")
            axes.set_xlabel("teacher layer")
        # the panels share an axis, which each of them has turned round
        if not panels[0].yaxis_inverted():
            panels[0].invert_yaxis()
        panels[0].set_ylabel("class")
        charts.color_bar(figure, mesh, list(panels), attention_figures.UNIT)
    return files | charts.pictures("attention_classes", figure)
