"""The semantic mismatch of several runs in one table and one picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..training.models import FeatureNet
from ..training.report import charts
from ..training.report.attention_figures import short
from ..training.report.report import layer_labels
from ..training.run.folder import LoadedRun, RunFolder
from .mismatch import (
    DISTANCES,
    SIMILARITIES,
    WEIGHTINGS,
    Distance,
    Mismatch,
    Similarity,
    Weighting,
    by_position,
    measure,
)
from .runs import Result, csv_bytes, evaluation, json_bytes, same_data, table, titles

READING = "our reading of the paper's score, of which no code was published: compare runs with each other only"
PANELS_A_ROW = 3
NORMS = {"frobenius": "Frobenius", "l1": "L1"}
NAMES = {
    "attention": "weighted by its attention",
    "position": "paired by position",
    "uniform": "all pairs alike",
    "pair": "its one pair",
}


@dataclass(frozen=True)
class Measured:
    """One run's mismatch; ``weighting`` says where the weights come from."""

    title: str
    path: str
    weighting: str
    student_layers: list[str]
    teacher_layers: list[str]
    mismatch: Mismatch


def analyze(
    folders: Sequence[RunFolder],
    *,
    distance: Distance = "frobenius",
    kind: Similarity = "gram",
    weighting: Weighting = "auto",
    which: str = "best",
    device: str = "cpu",
) -> Result:
    """Semantic mismatch of each run's student and the teacher.

    Args:
        folders: finished runs on one data set. A student trained alone is compared with the teacher of the first run
            that has one.
        distance, kind: see :func:`.mismatch.layer_distance`.
        weighting: which layers count as associated: ``"attention"`` of the run, ``"position"``
            (:func:`.mismatch.by_position`), ``"uniform"`` for all pairs, or ``"auto"``: what the run was trained with,
            and by position where it was trained with no layers.
        which, device: see :meth:`.RunFolder.load`.

    Raises:
        ValueError: an option is not known, no run has a teacher, a run has no attention to weigh with.
    """
    options = (
        ("distance", distance, DISTANCES),
        ("similarity", kind, SIMILARITIES),
        ("weights", weighting, WEIGHTINGS),
    )
    for name, value, choices in options:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{value}'")
    same_data(folders)
    with_teacher = next((folder for folder in folders if folder.config.teacher is not None), None)
    if with_teacher is None:
        raise ValueError("mismatch needs a teacher: none of the runs has one, so give one that was distilled as well")
    sources = [_source(folder, weighting) for folder in folders]
    lender = with_teacher.load(device, which)
    found = []
    for folder, title, source in zip(folders, titles(folders), sources, strict=True):
        run = lender if folder is with_teacher else folder.load(device, which)
        teacher = run.teacher or lender.teacher
        assert teacher is not None
        measured = measure(_batches(run, teacher, source), distance, kind)
        owner = folder if run.teacher is not None else with_teacher
        student_layers = layer_labels(run.student.layers, folder.summary, "student")
        teacher_layers = layer_labels(teacher.layers, owner.summary, "teacher")
        found.append(Measured(title, str(folder.path), source, student_layers, teacher_layers, measured))
    return _result(found, folders, distance, kind)


def _source(folder: RunFolder, weighting: Weighting) -> str:
    """Where a run's weights come from: ``attention``, ``position``, ``uniform`` or ``pair``."""
    method = folder.config.method.record
    if weighting == "attention" and not method.has_attention:
        raise ValueError(
            f"'{folder.path}' was trained with method '{method.name}', which has no attention to weigh with"
        )
    if weighting != "auto":
        return weighting
    return method.association or "position"


@torch.no_grad()
def _batches(
    run: LoadedRun, teacher: FeatureNet, source: str
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor], Tensor]]:
    """Maps and weights of each test batch."""
    criterion = run.criterion.attention
    with evaluation(run.student, teacher, run.criterion):
        for images, _ in run.data.test_batches():
            feat_s, feat_t = run.student(images).maps, teacher(images).maps
            size = len(feat_s), len(feat_t)
            if source == "attention":
                assert criterion is not None
                weight = criterion(feat_s, feat_t).weight
            elif source == "position":
                weight = by_position(*size)
            elif source == "uniform":
                weight = torch.full(size, 1 / size[1], dtype=torch.float64)
            else:
                assert run.config.method.pair is not None
                weight = torch.zeros(size, dtype=torch.float64)
                weight[run.config.method.pair] = 1.0
            yield feat_s, feat_t, weight


def _result(found: Sequence[Measured], folders: Sequence[RunFolder], distance: str, kind: str) -> Result:
    rows = [
        (m.title, m.path, m.weighting, short(s), short(t), float(m.mismatch.distance[i, j]), float(w), m.mismatch.score)
        for m in found
        for i, s in enumerate(m.student_layers)
        for j, (t, w) in enumerate(zip(m.teacher_layers, m.mismatch.weight[i], strict=True))
    ]
    names = ("run", "folder", "weighting", "student_layer", "teacher_layer", "distance", "weight", "score")
    values = {
        "note": READING,
        "distance": distance,
        "similarity": kind,
        "runs": [
            {
                "run": m.title,
                "folder": m.path,
                "weighting": m.weighting,
                "score": m.mismatch.score,
                "samples": m.mismatch.samples,
                "student_layers": m.student_layers,
                "teacher_layers": m.teacher_layers,
                "distance": m.mismatch.distance.tolist(),
                "weight": m.mismatch.weight.tolist(),
            }
            for m in found
        ],
    }
    cells = [[m.title, f"{m.mismatch.score:.4f}", NAMES[m.weighting]] for m in found]
    text = f"Semantic mismatch ({distance} distance of {kind} similarities), lower is closer; {READING}\n\n"
    text += table(["run", "score", "layers"], cells)
    if len({config.teacher.weights for config in (f.config for f in folders) if config.teacher is not None}) > 1:
        text += "\n\nThe runs have different teachers, so their scores do not compare."
    reach = _reach(found, distance, max(folder.config.recipe.batch_size for folder in folders))
    files = {"mismatch.csv": csv_bytes(names, rows), "mismatch.json": json_bytes(values)}
    return Result(text, {**charts.pictures("mismatch", _draw(found, f"{NORMS[distance]} distance", reach)), **files})


def _reach(found: Sequence[Measured], distance: str, batch_size: int) -> float:
    """The end of the colour scale, one for all runs of a batch size: the largest distance that maps can have.

    Rows of similarities have length 1. After a ReLU they are not negative, so that two of them are at most sqrt(2)
    apart, in the L1 norm sqrt(2 B); with signs it is sqrt(2) times as much.
    """
    after_relu = math.sqrt(2.0) if distance == "frobenius" else math.sqrt(2.0 * batch_size)
    largest = max(float(m.mismatch.distance.max()) for m in found)
    return after_relu if largest <= after_relu else math.sqrt(2.0) * after_relu


def _draw(found: Sequence[Measured], unit: str, reach: float) -> Figure:
    """Scores as bars, and below them the distances of all pairs of each run, in colours from 0 to ``reach``."""
    wide = min(PANELS_A_ROW, len(found))
    high = math.ceil(len(found) / wide)
    layers = max(len(m.student_layers) for m in found)
    with charts.style():
        bar_height, map_height = 1.1 + 0.32 * len(found), (1.0 + 0.42 * layers) * high
        figure = charts.new(max(5.5, 2.5 * wide + 0.8), bar_height + map_height)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(bar_height, map_height))[:, 0]
        axes = above.add_subplot(xlabel=f"score: mean {unit}, 0 is equal")
        axes.grid(axis="y", visible=False)
        scores = [m.mismatch.score for m in found]
        bars = axes.barh([m.title for m in found], scores, color=charts.SERIES[0], height=0.6)
        labels = [f"{m.mismatch.score:.4f}, {NAMES[m.weighting]}" for m in found]
        axes.bar_label(bars, labels, padding=4)
        # room for the labels
        axes.set_xlim(0, 1.6 * max(*scores, 1e-9))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_title("Semantic mismatch score (our reading), lower is closer")
        panels = list(below.subplots(high, wide, squeeze=False).flatten())
        for m, axes in zip(found, panels, strict=False):
            student, teacher = ([short(name) for name in side] for side in (m.student_layers, m.teacher_layers))
            scale = charts.Scale(reach, cmap="Oranges")
            mesh = charts.heat_map(axes, m.mismatch.distance.numpy(), student, teacher, scale)
            axes.set_title(m.title)
            axes.set_xlabel("teacher layer")
            axes.set_ylabel("student layer")
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        bar = below.colorbar(mesh, ax=panels[: len(found)], label=unit, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        return figure
