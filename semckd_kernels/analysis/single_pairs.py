"""Negative regularisation: one student for each single pair of layers, beside the student trained alone.

Chen et al., AAAI 2021, figure 2: distillation between a badly chosen student layer and teacher layer can leave the
student worse than no distillation of features at all. Here each pair (i, j) is a run of its own by the method ``pair``
(see ``training.methods``), with the configuration of a finished run in all else.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..training import preparation as setup
from ..training.config import TrainConfig, replace
from ..training.loop import trainer as engine
from ..training.methods import ALONE, ONE_PAIR
from ..training.report import charts
from ..training.report.attention_figures import short
from ..training.report.charts import Array
from ..training.report.report import layer_labels
from ..training.run import resume
from ..training.run.folder import RunFolder
from ..training.run.ownership import check_writable
from .runs import Result, csv_bytes, json_bytes, same_data, table, titles

# parts of a configuration that move no parameter
UNIMPORTANT = ("hardware", "logging")
# ends of the colour scale of differences, in percentage points
SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run: its runs by pair, and the finished runs it is compared with."""

    configs: dict[tuple[int, int], TrainConfig]
    out: Path
    student_layers: list[str]
    teacher_layers: list[str]
    compared: list[RunFolder]

    def folder(self, pair: tuple[int, int]) -> RunFolder:
        return RunFolder(self.out / "pair_{}_{}".format(*pair))


def plan(
    folders: Sequence[RunFolder],
    out: Path,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    epochs: int | None = None,
    device: str | None = None,
) -> Plan:
    """Checks a sweep before any of it runs; writes nothing.

    Args:
        folders: finished runs on one data set; the first that has a teacher lends its configuration, and all are
            compared with.
        out: each pair's run is in ``out/pair_I_J``. Finished ones of the same configuration are kept, an interrupted
            one resumes where it stopped.
        pairs: student and teacher layers, counted from 0; all of them unless given.
        epochs: of each run; those of the run that lends its configuration unless given.
        device: where to train; as that run unless given.

    Raises:
        ValueError: no run has a teacher, a pair does not exist, or a folder holds a run of another configuration.
        OSError: ``out`` cannot be written to.
    """
    same_data(folders)
    base = next((folder for folder in folders if folder.config.teacher is not None), None)
    if base is None:
        raise ValueError(
            "single-pairs needs a teacher: none of the runs has one, so give one that was distilled as well"
        )
    layers = base.summary["layers"]
    counts = len(layers["student"]), len(layers["teacher"])
    chosen = list(pairs) if pairs else [(i, j) for i in range(counts[0]) for j in range(counts[1])]
    for i, j in chosen:
        if not (0 <= i < counts[0] and 0 <= j < counts[1]):
            raise ValueError(
                f"pairs must name one of {counts[0]} student layers and one of {counts[1]} teacher layers, both "
                f"counted from 0, got {i},{j}"
            )
    changes = {"method.name": ONE_PAIR.name, "hardware.world_size": 1}
    changes |= {} if epochs is None else {"recipe.epochs": epochs}
    changes |= {} if device is None else {"hardware.device": device}
    names = ([layer["name"] for layer in layers[side]] for side in ("student", "teacher"))
    student, teacher = (
        layer_labels(side, base.summary, which) for side, which in zip(names, ("student", "teacher"), strict=True)
    )
    configs = {pair: replace(base.config, **changes, **{"method.pair": pair}) for pair in chosen}
    found = Plan(configs, out, student, teacher, list(folders))
    check_writable(out)
    for pair, config in configs.items():
        _check_earlier(found.folder(pair), config)
    # data, networks, criterion: what stops the first would stop all
    setup.prepare(configs[chosen[0]])
    return found


def train(sweep: Plan, say: Callable[[str], None] = print) -> None:
    """Trains what is not finished yet.

    Args:
        sweep: of :func:`plan`.
        say: gets a line before each run.

    Raises:
        TrainingError, CheckpointError, Stopped: see ``engine.Trainer``; what was finished is kept.
    """
    for n, (pair, config) in enumerate(sweep.configs.items(), start=1):
        folder = sweep.folder(pair)
        if folder.is_finished:
            continue
        student, teacher = short(sweep.student_layers[pair[0]]), short(sweep.teacher_layers[pair[1]])
        say(f"pair {n} of {len(sweep.configs)}: student {student} from teacher {teacher}, in {folder.path}")
        train_run(config, folder)


def train_run(config: TrainConfig, folder: RunFolder) -> None:
    """Trains one run to its end, from its last checkpoint where there is one."""
    run = setup.prepare(config)
    with folder.locked():
        # on another device, perhaps
        earlier = folder.config if folder.is_run else config
        same = dataclasses.replace(config, **{part: getattr(earlier, part) for part in UNIMPORTANT})
        state = resume.load(folder, same)
        trainer = engine.Trainer(run, folder, state)
        if state is None:
            folder.create(config)
        engine.finish(trainer)


def result(sweep: Plan) -> Result:
    """Accuracies of the pairs beside those of the other runs, once all are trained."""
    top1 = np.full((len(sweep.student_layers), len(sweep.teacher_layers)), math.nan)
    for pair in sweep.configs:
        top1[pair] = best_top1(sweep.folder(pair))
    others = {
        f"{title}, {_epochs(f.config)}": best_top1(f)
        for title, f in zip(titles(sweep.compared), sweep.compared, strict=True)
    }
    epochs = {config.recipe.epochs for config in sweep.configs.values()}
    # a student that was trained for longer is no baseline
    baselines = (f for f in sweep.compared if f.config.method.name == ALONE.name and f.config.recipe.epochs in epochs)
    alone = next(map(best_top1, baselines), None)
    epochs |= {folder.config.recipe.epochs for folder in sweep.compared}
    rows = [
        (i, j, short(sweep.student_layers[i]), short(sweep.teacher_layers[j]), top1[i, j], _less(top1[i, j], alone))
        for i, j in sweep.configs
    ]
    header = ("student_index", "teacher_index", "student_layer", "teacher_layer", "top1", "minus_student_alone")
    values = {
        "pairs": [dict(zip(header, row, strict=True)) for row in rows],
        "compared": [
            {"run": title, "folder": str(f.path), "top1": best_top1(f), "epochs": f.config.recipe.epochs}
            for title, f in zip(titles(sweep.compared), sweep.compared, strict=True)
        ],
    }
    return Result(
        _summary(sweep, top1, others, alone, len(epochs) > 1),
        {
            **charts.pictures("single_pairs", _draw(sweep, top1, others, alone)),
            "single_pairs.csv": csv_bytes(header, rows),
            "single_pairs.json": json_bytes(values),
        },
    )


def best_top1(folder: RunFolder) -> float:
    """The best test accuracy of a finished run, from 0 to 1."""
    return float(folder.summary["accuracy"]["best"]["top1"])


def _check_earlier(folder: RunFolder, config: TrainConfig) -> None:
    if not folder.is_run:
        return
    # through JSON, where a tuple is a list
    earlier, wanted = (json.loads(json.dumps(c.to_dict())) for c in (folder.config, config))
    for part in UNIMPORTANT:
        earlier.pop(part), wanted.pop(part)
    if earlier != wanted:
        parts = ", ".join(name for name in wanted if wanted[name] != earlier.get(name))
        raise ValueError(f"'{folder.path}' holds a run of another configuration ({parts}): give another --out")


def _less(value: float, alone: float | None) -> float | None:
    return None if alone is None else value - alone


def _epochs(config: TrainConfig) -> str:
    count = config.recipe.epochs
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _summary(sweep: Plan, top1: Array, others: dict[str, float], alone: float | None, mixed: bool) -> str:
    shown = [
        [name, *("-" if math.isnan(x) else f"{x:.2%}" for x in row)]
        for name, row in zip(sweep.student_layers, top1, strict=True)
    ]
    lines = ["Best test accuracy of students that learn one pair of layers, beside KD of the logits", ""]
    lines += [table(["student / teacher", *sweep.teacher_layers], shown), ""]
    lines.append("Compared: " + "; ".join(f"{title}: {x:.2%}" for title, x in others.items()))
    if alone is not None:
        below = int((top1 < alone).sum())
        lines.append(f"{below} of {len(sweep.configs)} pairs are below the student alone")
    if mixed:
        lines.append("Accuracies after different numbers of epochs do not compare.")
    return "\n".join(lines)


def _draw(sweep: Plan, top1: Array, others: dict[str, float], alone: float | None) -> Figure:
    """Differences to the student alone in percentage points; accuracies in % where there is nothing to compare with."""
    values = 100 * (top1 if alone is None else top1 - alone)
    # the smallest of a few scales, so that pictures of several sweeps compare
    largest = float(np.nanmax(np.abs(values)))
    reach = next((scale for scale in SCALES if scale >= largest), SCALES[-1])
    # white is no difference, and the colours left and right of it are told apart with any colour vision
    scale = charts.Scale(100.0, form="{:.2f}") if alone is None else charts.Scale(reach, -reach, "PuOr", "{:+.2f}")
    label = "accuracy in %" if alone is None else "accuracy, percentage points"
    with charts.style():
        figure = charts.new(6.4, 1.9 + 0.5 * len(values))
        axes = figure.add_subplot(xlabel="teacher layer", ylabel="student layer")
        mesh = charts.heat_map(axes, values, sweep.student_layers, sweep.teacher_layers, scale)
        charts.color_bar(figure, mesh, axes, label)
        what = "test accuracy" if alone is None else f"test accuracy minus that of the {ALONE.label}"
        compared = "; ".join(f"{title}: {x:.2%}" for title, x in others.items())
        charts.heading(figure, f"One pair of layers, {_epochs(next(iter(sweep.configs.values())))}: {what}")
        figure.supxlabel(f"compared: {compared}", fontsize=8, x=0.01, ha="left")
        return figure
