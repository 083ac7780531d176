"""Grad-CAM of several runs side by side: images by networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..training import charts
from ..training.data import DataSet
from ..training.models import FeatureNet
from ..training.run_folder import RunFolder
from .gradcam import MISSING, Cam, captum_is_installed, grad_cam
from .runs import Result, csv_bytes, json_bytes, same_data, table, titles

TARGETS = ("true", "predicted")
# inches of one image, and the letters of a class that fit above it
CELL = 1.35
LETTERS = 14
WRONG = "\N{BALLOT X}"


@dataclass(frozen=True)
class Column:
    """One network's heat maps and answers; ``layer`` is where they were taken."""

    title: str
    layer: str
    target: Tensor  # [N], the class explained
    cam: Cam


def analyze(
    folders: Sequence[RunFolder],
    indices: Sequence[int],
    *,
    layer: str | None = None,
    target: str = "true",
    which: str = "best",
    device: str = "cpu",
) -> Result:
    """Grad-CAM panels of chosen test images, for the runs' teacher and each of their students.

    Args:
        folders: finished runs on one data set; the teacher is that of the first run that has one.
        indices: of test images.
        layer: module path, the same in every network; unless given, each network's last map that has a gradient.
        target: what is explained: the image's ``"true"`` class, or the class that the network ``"predicted"``.
        which, device: see :meth:`.RunFolder.load`.

    Raises:
        ValueError: runs do not share a data set, an index is out of range, there is no such layer or target.
        ImportError: captum is not installed.
    """
    if not captum_is_installed():
        raise ImportError(MISSING)
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got '{target}'")
    same_data(folders)
    columns: list[Column] = []
    data: DataSet | None = None
    for folder, title in zip(folders, titles(folders), strict=True):
        run = folder.load(device, which)
        if data is None:
            data, (images, labels) = run.data, run.data.test_images(indices)
        if run.teacher is not None and not any(column.title == "teacher" for column in columns):
            columns.insert(0, _column("teacher", run.teacher, images, labels, layer, target))
        columns.append(_column(title, run.student, images, labels, layer, target))
    assert data is not None
    pictures = data.denormalise(images).cpu()
    names, truth = data.class_names, labels.tolist()
    return Result(
        _summary(columns, indices, names, truth),
        {
            **charts.pictures("gradcam", _draw(columns, pictures, indices, names, truth, target)),
            "gradcam.csv": _csv(columns, indices, names, truth),
            "gradcam.json": json_bytes(
                {
                    "target": target,
                    "checkpoint": which,
                    "indices": list(indices),
                    "networks": [{"title": c.title, "layer": c.layer, "heat": _rounded(c.cam.heat)} for c in columns],
                }
            ),
        },
    )


def _column(title: str, net: FeatureNet, images: Tensor, labels: Tensor, layer: str | None, target: str) -> Column:
    """One network's heat maps; without a layer, at the last of its layers whose pixels still reach the logits."""
    chosen = labels
    if target == "predicted":
        with torch.no_grad():
            chosen = net(images).logits.argmax(1)
    # after a transformer's last block only the class token is looked at, so that no other token has a gradient there
    for name in (layer,) if layer else reversed(net.layers):
        cam = grad_cam(net, images, chosen, name)
        if cam.heat.any():
            break
    return Column(title, name, chosen.cpu(), Cam(*(x.cpu() for x in cam)))


def _rounded(heat: Tensor) -> list[Any]:
    """Heat maps to four digits: more would be a file of many megabytes, and pictures have 8 bits."""
    values: list[Any] = (heat.double() * 1e4).round().div(1e4).tolist()
    return values


def _csv(columns: Sequence[Column], indices: Sequence[int], names: Sequence[str], truth: Sequence[int]) -> bytes:
    rows = []
    for column in columns:
        for n, index in enumerate(indices):
            p = column.cam.probability[n]
            guess = int(p.argmax())
            explained = names[int(column.target[n])]
            answers = (names[guess], float(p[guess]), float(p[truth[n]]))
            rows.append((index, column.title, column.layer, names[truth[n]], *answers, explained))
    header = ("image", "network", "layer", "true_class", "predicted_class", "p_predicted", "p_true", "explained_class")
    return csv_bytes(header, rows)


def _summary(columns: Sequence[Column], indices: Sequence[int], names: Sequence[str], truth: Sequence[int]) -> str:
    rows = []
    for n, index in enumerate(indices):
        answers = []
        for column in columns:
            p = column.cam.probability[n]
            answers.append(f"{names[int(p.argmax())]} {float(p.max()):.3f}")
        rows.append([str(index), names[truth[n]], *answers])
    return "Classes that the networks give chosen test images, with their probabilities\n\n" + table(
        ["image", "true class", *(column.title for column in columns)], rows
    )


def _draw(
    columns: Sequence[Column],
    pictures: Tensor,
    indices: Sequence[int],
    names: Sequence[str],
    truth: Sequence[int],
    target: str,
) -> Figure:
    """Images by networks; each first column is the image itself."""
    with charts.style(8.0):
        figure = charts.new(max(CELL * (1 + len(columns)) + 0.6, 5.4), (CELL + 0.22) * len(pictures) + 0.9)
        grid = figure.subplots(len(pictures), 1 + len(columns), squeeze=False)
        for n, row in enumerate(grid):
            for axes in row:
                axes.set_axis_off()
            _show(row[0], pictures[n])
            text = f"{_short(names[truth[n]])}, no. {indices[n]}"
            row[0].set_title(text, fontsize=7, fontweight="normal", loc="center")
            for axes, column in zip(row[1:], columns, strict=True):
                _show(axes, pictures[n], grey=True)
                drawn = axes.imshow(column.cam.heat[n].numpy(), cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.6)
                p = column.cam.probability[n]
                guess = int(p.argmax())
                # a mark and not a colour says which answers are wrong
                mark = "" if guess == truth[n] else f"{WRONG} "
                text = f"{mark}{_short(names[guess])}, {float(p[guess]):.2f}"
                axes.set_title(text, fontsize=7, fontweight="normal", loc="center")
        for axes, title in zip(grid[0], ["image", *(column.title for column in columns)], strict=True):
            axes.annotate(
                charts.two_lines(title),
                (0.5, 1.22),
                xycoords="axes fraction",
                ha="center",
                va="bottom",
                fontweight="bold",
                fontsize=9,
            )
        charts.heading(figure, f"Grad-CAM, predicted class and its probability ({WRONG} where it is wrong)")
        bar = figure.colorbar(
            drawn, ax=grid, fraction=0.03, pad=0.01, label=f"evidence for the {target} class, 1 = the image's largest"
        )
        bar.outline.set_visible(False)
        return figure


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _show(axes: Axes, picture: Tensor, grey: bool = False) -> None:
    """An image ``[C, H, W]`` from 0 to 1; one channel, or any mean of three, is shown in grey."""
    if len(picture) == 3 and not grey:
        axes.imshow(picture.permute(1, 2, 0).numpy())
    else:
        axes.imshow(np.asarray(picture.mean(0)), cmap="gray", vmin=0.0, vmax=1.0)
