"""The model card: README.md in Hugging Face's form, from what a run has stored."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...install import pip_install
from .. import config
from ..config import TrainConfig
from ..export_formats import FILES
from ..flags import written
from ..run import course
from ..run.folder import LoadedRun, RunFolder

NAME = "README.md"
# names of data sets on Hugging Face's hub
HUB_NAMES = {"cifar100": "uoft-cs/cifar100", "imagenet": "ILSVRC/imagenet-1k"}
# names of files and folders of a machine, which are nobody else's business, and what says nothing of the training
NOT_SHOWN = ("data.root", "data.download", "data.workers", "student.weights", "teacher.weights", "logging.")


def check() -> None:
    """Raises ValueError where a package is missing."""
    if find_spec("huggingface_hub") is None:
        advice = pip_install("semckd-kernels[export]")
        raise ValueError(f"a model card needs huggingface_hub, which is not installed: run {advice}")


def write(folder: RunFolder, run: LoadedRun, which: str, exported: Mapping[str, Any]) -> str:
    """The card of a finished run's student.

    Args:
        folder, run: the run.
        which: checkpoint that was exported.
        exported: the fields of ``Exported``.
    """
    from huggingface_hub import EvalResult, ModelCardData

    options, summary = run.config, folder.summary
    name, data = options.student.name.rpartition("/")[2].rpartition(":")[2], options.data.name
    accuracy = summary["accuracy"][which]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=HUB_NAMES.get(data, data),
            dataset_name=data,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"top-{k} accuracy",
            metric_value=round(accuracy[f"top{k}"], 6),
        )
        for k in (1, 5)
    ]
    header = ModelCardData(
        model_name=f"{name}-{data}-{options.method.name}",
        eval_results=results,
        library_name="timm" if options.student.name.startswith("timm/") else "pytorch",
        pipeline_tag="image-classification",
        tags=["image-classification", *(["knowledge-distillation", options.method.name] if options.teacher else [])],
        datasets=[HUB_NAMES[data]] if data in HUB_NAMES else None,
        metrics=["accuracy"],
    )
    sections = {
        "Accuracy": _accuracy(folder, which, exported),
        "Use": _use(run, exported),
        "Training": _training(options),
        "Versions": _table(("", ""), _versions(summary["environment"])),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{header.to_yaml()}\n---\n\n# {name}\n\n{_about(options)}\n\n{body}\n"


def _about(options: TrainConfig) -> str:
    student, method = options.student.name, options.method
    trained = f"`{student}` trained alone"
    if options.teacher is not None:
        trained = (
            f"`{student}` distilled from `{options.teacher.name}` by {method.record.label} (method `{method.name}`)"
        )
    average = f" Its weights are a moving average of decay {options.recipe.ema:g}." if options.recipe.ema else ""
    return f"{trained} on {options.data.name}, with semckd_kernels.{average}"


def _accuracy(folder: RunFolder, which: str, exported: Mapping[str, Any]) -> str:
    summary = folder.summary
    found = summary["accuracy"][which]
    seeds = [(folder.config.recipe.seed, found), *_other_seeds(folder, which)]
    rows = [(seed, f"{of['top1']:.2%}", f"{of['top5']:.2%}", of["epoch"]) for seed, of in seeds]
    text = f"Top-1 and top-5 on {summary['counts']['test_images']} test images, checkpoint `{which}`"
    text += " (chosen by these images):\n\n" if which == "best" else ":\n\n"
    text += _table(("seed", "top-1", "top-5", "epoch"), rows)
    if len(rows) > 1:
        values = [of["top1"] for _, of in seeds]
        text += (
            f"\n\nThe files are of the first row. Over {len(values)} seeds top-1 is {statistics.mean(values):.2%} "
            f"with a standard deviation of {100 * statistics.stdev(values):.2f} points."
        )
    checks = ", ".join(f"{name} {value:.2g}" for name, value in exported["differences"].items())
    return text + (
        f"\n\nChecked before they were written, on a batch of {exported['images']} test images (top-1 "
        f"{exported['top1']:.2%}): largest difference of a logit from the run's network: {checks}."
    )


def _other_seeds(folder: RunFolder, which: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Finished runs beside this one that differ in their seed alone, in its order."""
    here = folder.path.resolve()
    found = {}
    for path in sorted(here.parent.iterdir()):
        other = RunFolder(path)
        if path == here or not (other.is_run and other.is_finished):
            continue
        try:
            if course.differing(other.config, folder.config) == ["recipe.seed"]:
                found[other.config.recipe.seed] = other.summary["accuracy"][which]
        except (ValueError, OSError):
            # damaged, or of a version that is not known here
            continue
    yield from sorted(found.items())


def _use(run: LoadedRun, exported: Mapping[str, Any]) -> str:
    data, name = run.data, run.config.student.name
    height, width = data.image_size
    text = f"Input: fp32 `[B, {data.in_channels}, {height}, {width}]`, "
    mean, std = ([round(x, 4) for x in v.flatten().tolist()] for v in (data.normaliser.mean, data.normaliser.std))
    # a data set of the user's own may give images that are normalised
    is_plain = set(mean) == {0.0} and set(std) == {1.0}
    text += "as the data set gives it" if is_plain else f"pixels from 0 to 1 less the mean {mean}, divided by {std}"
    text += f". Output: logits `[B, {data.classes}]`.\n\n```python\n"
    code = {
        FILES["state-dict"]: (
            "from safetensors.torch import load_file\n"
            "from semckd_kernels.training import models\n"
            f'net = models.build("{name}", classes={data.classes}, in_channels={data.in_channels}, '
            f"image_size=({height}, {width})).net.eval()\n"
            'net.load_state_dict(load_file("model.safetensors"))'
        ),
        FILES["torch-export"]: 'import torch\nnet = torch.export.load("model.pt2").module()',
        FILES["onnx"]: (
            'import onnxruntime\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            '(logits,) = session.run(["logits"], {"images": images})'
        ),
    }
    text += "\n\n".join(code[path.name] for path in exported["files"] if path.name in code) + "\n```"
    names = ", ".join(data.class_names)
    return f"{text}\n\n<details><summary>Classes, in the order of the logits</summary>{names}</details>"


def _training(options: TrainConfig) -> str:
    teacher = options.teacher
    text = ""
    if teacher is not None:
        source = "weights of its library" if teacher.weights is None else f"`{Path(teacher.weights).name}`"
        text = f"Teacher: `{teacher.name}`, {source}{_teacher_accuracy(teacher.weights)}.\n\n"
    used = {"name", *options.method.record.fields} - set(options.method.idle)
    rows = (
        (f"`{name}`", written(value))
        for name, value in config.flatten(options).items()
        if value is not None
        and not name.startswith(NOT_SHOWN)
        and (not name.startswith("method.") or name.removeprefix("method.") in used)
    )
    return text + _table(("field of config.json", "value"), rows)


def _teacher_accuracy(weights: str | None) -> str:
    """Of a teacher that is a finished run."""
    if weights is None:
        return ""
    try:
        best = RunFolder(weights).summary["accuracy"]["best"]
    except (OSError, ValueError):
        return ""
    return f", top-1 {best['top1']:.2%} in its own run"


def _versions(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the run was made on, without the backends that could have served."""
    return ((name, value) for name, value in environment.items() if value is not None and not isinstance(value, dict))


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    # a bar would begin another cell
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
