"""The demo: a small ResNet distilled on handwritten digits by several methods, all from the same seed.

``semckd demo``, ``python -m semckd_kernels.training`` or ``make demo``: a teacher, then the student alone, by KD, and
by SemCKD, once as the plain reference and once with our kernels, each an ordinary run of its own in
``runs/digits/NAME``. The two SemCKD runs must agree in the losses of their first steps.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..install import pip_install
from ..training import config, presets
from ..training.config import TrainConfig
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE
from ..training.flags import in_flags
from ..training.methods import ALONE, KD, METHODS, SEMCKD
from ..training.parser import COUNT, POSITIVE, SEED, folder_path, whole
from ..training.report.attention_bound import upper_bound
from ..training.report.units import duration

if TYPE_CHECKING:
    from ..training.run.folder import RunFolder

# small enough for a minute or two on a CPU
TEACHER, STUDENT = "resnet20", "resnet8"
# Two runs that differ by the backend alone: the first step has equal parameters, the second shows the gradients.
# Orders of summation give 1e-7 there, a gradient wrong by 1% gives 3e-4 (measured); from the third step on, training
# multiplies rounding errors, up to percents after some twenty steps.
COMPARED_STEPS = 2
COMPARED_TOLERANCE = 1e-5
# short name of a run: title, method, backend (None: as the user asks)
RUNS: dict[str, tuple[str, str, str | None]] = {
    "teacher": ("teacher", ALONE.name, None),
    "student": (ALONE.label, ALONE.name, None),
    "kd": (KD.label, KD.name, None),
    "semckd_reference": (f"{SEMCKD.label}, reference", SEMCKD.name, "reference"),
    "semckd": (f"{SEMCKD.label}, ours", SEMCKD.name, None),
}


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference of the losses of two runs: in the first steps, and in all steps."""

    steps: int
    first_steps: float
    all_steps: float

    @property
    def holds(self) -> bool:
        return self.first_steps <= COMPARED_TOLERANCE


def compare(ours: list[float], reference: list[float]) -> Agreement:
    """Compares the losses of two runs step by step."""
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(ours, reference, strict=True)]
    # max() would pass over a NaN
    apart = [math.inf if math.isnan(x) else x for x in apart]
    return Agreement(min(COMPARED_STEPS, len(apart)), max(apart[:COMPARED_STEPS]), max(apart))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's flags, a selection of those of ``semckd train``."""

    def add(name: str, text: str, default: Any, shown: str = "%(default)s", **options: Any) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: {shown})", **options)

    add("--out", "write the runs into this folder", Path("runs/digits"), type=folder_path, metavar="DIR")
    add(
        "--epochs",
        "train each run for this many epochs",
        None,
        "10, with --quick 1",
        type=whole(1, 10_000),
        metavar="INT",
    )
    add("--batch-size", "take this many images a step", 64, type=COUNT, metavar="INT")
    add("--lr", "train with this highest learning rate", 0.05, type=POSITIVE, metavar="FLOAT")
    add("--beta", "multiply SemCKD by this weight", 50.0, type=POSITIVE, metavar="FLOAT")
    add("--temperature", "divide the logits of KD by this", 4.0, type=POSITIVE, metavar="FLOAT")
    add("--seed", "draw parameters and order from this seed", 0, type=SEED, metavar="INT")
    add(
        "--device",
        "compute on this device: cpu, cuda, cuda:1, ... or auto, a GPU if there is one",
        "auto",
        metavar="NAME",
    )
    add("--threads", "use this many CPU threads", 1, type=whole(1, 1024), metavar="INT")
    add("--backend", "compute our SemCKD by this backend, such as cpu or triton", None, "the fastest", metavar="NAME")
    text = "train for one epoch and sweep over two pairs of layers: shows in seconds that everything works"
    parser.add_argument("--quick", action="store_true", help=text)
    parser.set_defaults(run=run)


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``demo``."""
    text = "Trains a ResNet on scikit-learn's handwritten digits and distils a smaller one from it."
    add_arguments(commands.add_parser("demo", help="distil on handwritten digits, in minutes", description=text))


def make_configs(args: argparse.Namespace) -> dict[str, TrainConfig]:
    """A configuration for each of :data:`RUNS`."""
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    shared = {
        "recipe.epochs": args.epochs or (1 if args.quick else 10),
        "recipe.batch_size": args.batch_size,
        "recipe.lr": args.lr,
        "recipe.seed": args.seed,
        "method.beta": args.beta,
        "method.temperature": args.temperature,
        "hardware.device": device,
        "hardware.threads": args.threads,
    }
    teacher = {"teacher.name": TEACHER, "teacher.weights": str((args.out / "teacher").resolve())}
    configs = {}
    for key, (_, method, backend) in RUNS.items():
        base = presets.preset("digits", TEACHER if key == "teacher" else STUDENT)
        values = {**shared, "method.name": method, "method.backend": backend or args.backend}
        configs[key] = config.replace(base, **values, **(teacher if METHODS[method].needs_teacher else {}))
    return configs


def run(args: argparse.Namespace) -> int:
    """Trains all runs over those of an earlier demo, prints the table, and returns the exit code."""
    from ..training import preparation as setup
    from ..training.loop import trainer as engine
    from ..training.loop.records import TrainingError
    from ..training.loop.signals import Stopped
    from ..training.run.checkpoint import CheckpointError
    from ..training.run.folder import RunFolder

    folders = {key: RunFolder(args.out / key) for key in RUNS}
    configs = make_configs(args)
    started = False
    try:
        check(configs, folders)
        for key, folder in folders.items():
            prepared = setup.prepare(configs[key])
            with folder.locked():
                folder.create(configs[key])
                started = True
                print(f"\n{RUNS[key][0]}", flush=True)
                engine.train(prepared, folder)
        agreement = compare(*([row["loss"] for row in folders[key].steps()] for key in ("semckd", "semckd_reference")))
        print(f"\n{table(folders)}\n\n{notes(folders, agreement)}", flush=True)
        analyses = analyze(folders, args.quick)
    except (ValueError, OSError, CheckpointError, TrainingError) as error:
        print(f"semckd demo: {in_flags(str(error))}", file=sys.stderr)
        return EXIT_FAILED if started else EXIT_USAGE
    except Stopped as stopped:
        print("semckd demo: stopped; what is finished is kept", file=sys.stderr)
        return SIGNAL_BASE + stopped.number
    print(f"\nWritten: {args.out}, a report.html in each run; {analyses}", flush=True)
    return 0 if agreement.holds else EXIT_FAILED


def analyze(folders: dict[str, RunFolder], quick: bool) -> str:
    """The paper's analyses of the runs, where matplotlib is installed; returns half a sentence about their files."""
    if find_spec("matplotlib") is None:
        return f"no analyses without matplotlib: {pip_install('semckd-kernels[plot]')}"
    from ..analysis import overview as demo

    runs = [folders[key] for key in ("student", "kd", "semckd")]
    return f"analyses in {demo.run(runs, quick, runs[0].config.hardware.device, print)}"


def check(configs: dict[str, TrainConfig], folders: dict[str, RunFolder]) -> None:
    """Checks what would stop a later run, before the first.

    Raises:
        ValueError, OSError: see ``setup.prepare`` and ``RunFolder.check``.
    """
    from .. import SemCKD
    from ..training import preparation as setup
    from ..training.run import ownership

    setup.prepare(configs["teacher"])
    backend = configs["semckd"].method.backend
    if backend is not None:
        import torch

        x = torch.ones(1, 1, 2, 2, device=configs["semckd"].hardware.device)
        try:
            SemCKD(1, [1], [1], backend=backend).to(x.device)([x], [x])
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    for folder in folders.values():
        folder.check(overwrite=True, resume=False)
        ownership.check_writable(folder.path)


def table(folders: dict[str, RunFolder]) -> str:
    """Accuracy and step time of each run, as text."""
    rows = [("", "network", "test accuracy", "a step")]
    for key, folder in folders.items():
        summary = folder.summary
        ms = sum(value for value in summary["step_ms"].values() if value is not None)
        rows.append(
            (RUNS[key][0], folder.config.student.name, f"{summary['accuracy']['last']['top1']:.1%}", duration(ms / 1e3))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join((title.ljust(widths[0]), net.ljust(widths[1]), accuracy.rjust(widths[2]), ms.rjust(widths[3])))
        for title, net, accuracy, ms in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def notes(folders: dict[str, RunFolder], agreement: Agreement) -> str:
    """What the table and the attention do and do not show, one paragraph a line."""
    summary, attention = folders["semckd"].summary, folders["semckd"].attention()
    n, p = summary["counts"]["test_images"], summary["accuracy"]["last"]["top1"]
    lines = [
        f"Accuracy differences at this size are noise: one of the {n} test images is {1 / n:.1%}, and an accuracy of "
        f"{p:.1%} has a standard error of {math.sqrt(p * (1 - p) / n):.1%}.",
        f"SemCKD as the plain reference and by our kernels, same seed: the losses of the first {agreement.steps} steps "
        f"{'agree' if agreement.holds else 'DISAGREE'}, to {agreement.first_steps:.1e} relative (limit "
        f"{COMPARED_TOLERANCE:.0e}). Over all steps they differ by up to {agreement.all_steps:.1e}: the sums are "
        "ordered differently, and training multiplies such rounding errors.",
        "A step this small is mostly overhead; steps of full size are measured by `pytest bench/`.",
    ]
    if attention is not None:
        mean = attention.weight[-1].mean(0)
        bound = upper_bound(len(mean), folders["semckd"].config.method.soft)
        lines.append(
            f"The attention gives {attention.teacher_layers[int(mean.argmax())]} of the teacher {mean.max():.3f} of "
            f"its weight, of at most {bound:.3f}: training favours the teacher layers that are easiest to match."
        )
    return "\n".join(lines)
