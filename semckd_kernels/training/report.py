"""The table, the attention heat map and the files of a finished experiment."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import semckd_kernels

from .experiment import COMPARED_TOLERANCE, Attention, Results, Run

FILES = ("results.json", "losses.csv", "attention.png")
# inches and dots per inch of the heat map: 960 x 720 pixels
FIGURE_SIZE = (6.4, 4.8)
FIGURE_DPI = 150


def table(results: Results) -> str:
    """Accuracy and step time of each run, as text."""
    rows = [("", "network", "test accuracy", "ms a step")]
    for run in results.runs.values():
        rows.append((run.title, run.net, f"{run.accuracy:.1%}", f"{run.history.median_step_ms():.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join((title.ljust(widths[0]), net.ljust(widths[1]), accuracy.rjust(widths[2]), ms.rjust(widths[3])))
        for title, net, accuracy, ms in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def notes(results: Results) -> str:
    """What the table and the heat map do and do not show, one paragraph a line."""
    agreement, n, ours = results.agreement, results.test_samples, results.runs["semckd"]
    p = ours.accuracy
    lines = [
        f"Accuracy differences at this size are noise: one of the {n} test images is {1 / n:.1%}, and an accuracy of "
        f"{p:.1%} has a standard error of {math.sqrt(p * (1 - p) / n):.1%}.",
        f"SemCKD as the plain reference and by our kernels, same seed: the losses of the first {agreement.steps} steps "
        f"{'agree' if agreement.holds else 'DISAGREE'}, to {agreement.first_steps:.1e} relative (limit "
        f"{COMPARED_TOLERANCE:.0e}). Over all {len(ours.history.losses)} steps they differ by up to "
        f"{agreement.all_steps:.1e}: the sums are ordered differently, and training multiplies such rounding errors.",
        "A step this small is mostly overhead; steps of full size are measured by `pytest bench/`.",
    ]
    if ours.attention is not None:
        mean = ours.attention.weight.mean(0)
        # energies are cosines: at best 1 for one teacher layer and -1 for the T - 1 others
        bound = math.e / (math.e + (len(mean) - 1) / math.e)
        lines.append(
            f"The attention gives {ours.attention.teacher_layers[int(mean.argmax())]} of the teacher {mean.max():.3f} "
            f"of its weight, of at most {bound:.3f}: training favours the teacher layers that are easiest to match."
        )
    return "\n".join(lines)


def attention_png(attention: Attention) -> bytes:
    """The mean attention as an annotated heat map, student layers by teacher layers."""
    weight = attention.weight
    figure = Figure(figsize=FIGURE_SIZE, dpi=FIGURE_DPI, layout="constrained")
    axes = figure.add_subplot()
    # from zero, so that near-uniform attention looks near-uniform
    image = axes.imshow(weight.numpy(), cmap="Blues", vmin=0.0, vmax=max(float(weight.max()), 1e-6), aspect="auto")
    # name and size on a line each
    axes.set_xticks(range(weight.shape[1]), [name.replace(" (", "\n(") for name in attention.teacher_layers])
    axes.set_yticks(range(weight.shape[0]), [name.replace(" (", "\n(") for name in attention.student_layers])
    axes.set_xlabel("teacher layer (channels x height x width)")
    axes.set_ylabel("student layer (channels x height x width)")
    axes.set_title(f"SemCKD attention, mean over {attention.samples} test images")
    for i, row in enumerate(weight.tolist()):
        for j, value in enumerate(row):
            color = "white" if value > 0.6 * float(weight.max()) else "black"
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=color, fontsize=12)
    figure.colorbar(image, ax=axes, label="weight of the teacher layer (each row adds up to 1)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def as_dict(results: Results) -> dict[str, Any]:
    """Results in the types of JSON, without the losses of single steps."""
    agreement = results.agreement
    return {
        "config": asdict(results.config),
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "scikit-learn")},
            "threads": torch.get_num_threads(),
            "backends": {name: found.detail for name, found in semckd_kernels.available_backends().items()},
        },
        "test_samples": results.test_samples,
        "runs": {key: _run_as_dict(run) for key, run in results.runs.items()},
        "agreement": {**asdict(agreement), "limit": COMPARED_TOLERANCE, "holds": agreement.holds},
    }


def _run_as_dict(run: Run) -> dict[str, Any]:
    losses, attention = run.history.losses, run.attention
    return {
        "title": run.title,
        "net": run.net,
        "parameters": run.parameters,
        "accuracy": run.accuracy,
        "steps": len(losses),
        "step_ms": run.history.median_step_ms(),
        "seconds": run.seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "attention": None if attention is None else {**vars(attention), "weight": attention.weight.tolist()},
    }


def losses_csv(results: Results) -> str:
    """The total loss of each step, one column a run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", *results.runs])
    columns = [run.history.losses for run in results.runs.values()]
    writer.writerows([step, *values] for step, values in enumerate(zip(*columns, strict=True), start=1))
    return buffer.getvalue()


def write(results: Results, folder: Path) -> None:
    """Writes all files of an experiment, over those of an earlier one."""
    attention = results.runs["semckd"].attention
    assert attention is not None
    contents = (
        json.dumps(as_dict(results), indent=2, allow_nan=False).encode() + b"\n",
        losses_csv(results).encode(),
        attention_png(attention),
    )
    write_files(folder, dict(zip(FILES, contents, strict=True)))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files so that each is old or new, never half: all are written aside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = {folder / name: folder / f".{name}.tmp" for name in contents}
    try:
        for content, temporary in zip(contents.values(), aside.values(), strict=True):
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in aside.items():
            os.replace(temporary, path)
    finally:
        for temporary in aside.values():
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raises OSError where :func:`write` could not write; leaves nothing behind."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if blocked := [name for name in FILES if (folder / name).is_dir()]:
        raise IsADirectoryError(f"'{blocked[0]}' in it is a folder")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError("it is not a folder")
    try:
        write_files(folder, {"probe": b"probe"})
        (folder / "probe").unlink()
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()
