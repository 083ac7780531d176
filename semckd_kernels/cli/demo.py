"""The demo: few labels make distillation visible, and several seeds say what of it is more than noise.

``semckd demo`` or ``make demo``: a teacher learns all handwritten digits; students learn a tenth of them, drawn anew
for each seed, alone, by KD and by SemCKD, each an ordinary run in ``runs/digits/METHOD/seed-N``. Some steps of SemCKD
as the plain reference and with our kernels must agree in their losses. The paper's analyses and ``semckd compare`` end
it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..install import pip_install
from ..training import config, presets
from ..training.config import TrainConfig
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE
from ..training.flags import in_flags
from ..training.methods import ALONE, KD, SEMCKD
from ..training.parser import COUNT, POSITIVE, SEED, folder_path, whole
from ..training.report.attention_bound import upper_bound
from ..training.report.units import duration

if TYPE_CHECKING:
    from ..analysis.comparison.comparison import Comparison
    from ..training.run.folder import RunFolder

# small enough for a minute or two on a CPU
TEACHER, STUDENT = "resnet20", "resnet8"
TEACHER_EPOCHS = 10
# On all 1,437 images everybody is right on 99% of the test images. On 143 of them, 150 steps in 50 epochs, the methods
# are points apart.
FRACTION, EPOCHS, SEEDS = 0.1, 50, 5
QUICK_EPOCHS, QUICK_SEEDS = 1, 2
# steps of the reference and of our kernels; two are compared, the others timed
STEPS, QUICK_STEPS = 12, 4
# runs at a time on a CPU
JOBS = 2
# name of a method's folder
METHODS = {"alone": ALONE, "kd": KD, "semckd": SEMCKD}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's flags, a selection of those of ``semckd train``."""

    def add(name: str, text: str, default: Any, shown: str = "%(default)s", **options: Any) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: {shown})", **options)

    def count(name: str, text: str, usual: int, quick: int, most: int) -> None:
        add(name, text, None, f"{usual}, with --quick {quick}", type=whole(1, most), metavar="INT")

    add("--out", "write the runs into this folder", Path("runs/digits"), type=folder_path, metavar="DIR")
    count("--epochs", "train each student for this many epochs", EPOCHS, QUICK_EPOCHS, 10_000)
    count("--seeds", "train this many students by each method", SEEDS, QUICK_SEEDS, 1000)
    add("--batch-size", "take this many images a step", 64, type=COUNT, metavar="INT")
    add("--lr", "train with this highest learning rate", 0.05, type=POSITIVE, metavar="FLOAT")
    add("--beta", "multiply SemCKD by this weight", 50.0, type=POSITIVE, metavar="FLOAT")
    add("--temperature", "divide the logits of KD by this", 4.0, type=POSITIVE, metavar="FLOAT")
    add("--seed", "draw parameters, order and labels from this seed and those behind it", 0, type=SEED, metavar="INT")
    text = "compute on this device: cpu, cuda, cuda:1, ... or auto, a GPU if there is one"
    add("--device", text, "auto", metavar="NAME")
    add("--threads", "use this many CPU threads for each run", 1, type=whole(1, 1024), metavar="INT")
    text = "train this many runs at a time"
    add("--jobs", text, None, f"{JOBS} on a CPU with as many cores", type=whole(1, 64), metavar="INT")
    add("--backend", "compute our SemCKD by this backend, such as cpu or triton", None, "the fastest", metavar="NAME")
    text = "train for one epoch and sweep over two pairs of layers: shows in seconds that everything works"
    parser.add_argument("--quick", action="store_true", help=text)
    parser.set_defaults(run=run)


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``demo``."""
    text = (
        "Trains a ResNet on scikit-learn's handwritten digits, distils smaller ones from it that see a tenth of the "
        "labels, and compares methods over several seeds."
    )
    add_arguments(commands.add_parser("demo", help="distil on handwritten digits, in minutes", description=text))


def make_configs(args: argparse.Namespace) -> dict[Path, TrainConfig]:
    """Configurations by folder: the teacher's first, then each method's in the order of seeds."""
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    shared = {
        "recipe.batch_size": args.batch_size,
        "recipe.lr": args.lr,
        "method.beta": args.beta,
        "method.temperature": args.temperature,
        "hardware.device": device,
        "hardware.threads": args.threads,
    }
    path = args.out / "teacher"
    first = {"recipe.epochs": QUICK_EPOCHS if args.quick else TEACHER_EPOCHS, "recipe.seed": args.seed}
    configs = {path: config.replace(presets.preset("digits", TEACHER), **shared, **first)}
    teacher = {"teacher.name": TEACHER, "teacher.weights": str(path.resolve())}
    epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)
    for name, method in METHODS.items():
        own = {"method.name": method.name, "data.train_fraction": FRACTION, "recipe.epochs": epochs}
        own |= {**teacher, "method.backend": args.backend} if method.needs_teacher else {}
        for seed in range(args.seed, args.seed + (args.seeds or (QUICK_SEEDS if args.quick else SEEDS))):
            base = presets.preset("digits", STUDENT)
            configs[args.out / name / f"seed-{seed}"] = config.replace(base, **shared, **own, **{"recipe.seed": seed})
    return configs


def run(args: argparse.Namespace) -> int:
    """Trains all runs over those of an earlier demo, compares them, and returns the exit code."""
    from ..analysis.comparison.comparison import compare
    from ..training.loop.records import TrainingError
    from ..training.loop.signals import Stopped
    from ..training.run.checkpoint import CheckpointError
    from ..training.run.folder import RunFolder
    from . import first_steps

    configs = make_configs(args)
    started = False
    try:
        check(configs)
        started = True
        train(configs, jobs(args, configs))
        runs = {name: RunFolder(args.out / name / f"seed-{args.seed}") for name in METHODS}
        ours = config.replace(runs["semckd"].config, **{"data.train_fraction": 1.0})
        reference = config.replace(ours, **{"method.backend": "reference"})
        agreement, text = first_steps.run(ours, reference, QUICK_STEPS if args.quick else STEPS)
        print(f"\n{text}", flush=True)
        analyses = analyze(list(runs.values()), args.quick)
        comparison = compare([path for path in configs if path != args.out / "teacher"])
        print(f"\n{comparison.summary}\n\n{notes(runs['semckd'])}", flush=True)
        page = write(comparison, args.out / "comparison")
    except (ValueError, OSError, CheckpointError, TrainingError) as error:
        print(f"semckd demo: {in_flags(str(error))}", file=sys.stderr)
        return EXIT_FAILED if started else EXIT_USAGE
    except Stopped as stopped:
        print("semckd demo: stopped; what is finished is kept", file=sys.stderr)
        return SIGNAL_BASE + stopped.number
    print(f"\nWritten: {args.out}, a report.html in each run; {analyses}{page}", flush=True)
    return 0 if agreement.holds else EXIT_FAILED


def jobs(args: argparse.Namespace, configs: dict[Path, TrainConfig]) -> int:
    """Runs at a time: a GPU is best left to one, and a few steps are done before another process has started."""
    from . import workers

    on_cpu = all(run.hardware.device == "cpu" for run in configs.values())
    return args.jobs or (min(JOBS, workers.cores()) if on_cpu and not args.quick else 1)


def train(configs: dict[Path, TrainConfig], at_a_time: int) -> None:
    """Trains the teacher together with what needs none, then the others, the longest first."""
    from ..training.run.folder import RunFolder
    from . import workers

    first = {path: run for path, run in configs.items() if run.teacher is None}
    then = {path: run for path, run in reversed(configs.items()) if run.teacher is not None}
    done = 0

    def say(path: Path) -> None:
        nonlocal done
        done += 1
        summary, run = RunFolder(path).summary, configs[path]
        what = f"{run.method.record.label}, seed {run.recipe.seed}" if path.name != "teacher" else "the teacher"
        images, accuracy = summary["counts"]["train_images"], summary["accuracy"]["last"]["top1"]
        print(
            f"run {done} of {len(configs)}: {run.student.name}, {what}, {images} images: {accuracy:.1%} in "
            f"{duration(summary['seconds'])}",
            flush=True,
        )
        for warning in summary.get("warnings", ()):
            print(f"warning: {warning['message']}", flush=True)

    for part in (first, then):
        workers.train(part, at_a_time, say)


def analyze(runs: list[RunFolder], quick: bool) -> str:
    """The paper's analyses of the runs, where matplotlib is installed; returns half a sentence about their files."""
    if find_spec("matplotlib") is None:
        return f"no analyses without matplotlib: {pip_install('semckd-kernels[plot]')}"
    from ..analysis import overview as demo

    return f"analyses in {demo.run(runs, quick, runs[0].config.hardware.device, print)}"


def write(comparison: Comparison, out: Path) -> str:
    """The page and the tables, where their packages are installed; returns the end of a sentence about them."""
    if any(find_spec(name) is None for name in ("matplotlib", "jinja2")):
        return ""
    from ..analysis.comparison import page

    paths = page.result(comparison, out).write(out)
    return f"; the comparison: {paths[0]}"


def check(configs: dict[Path, TrainConfig]) -> None:
    """Checks what would stop a later run, before the first.

    Raises:
        ValueError, OSError: see ``setup.prepare`` and ``RunFolder.check``.
    """
    from .. import SemCKD
    from ..training import preparation as setup
    from ..training.run import ownership
    from ..training.run.folder import RunFolder

    for run in _without_teacher(configs.values()):
        setup.prepare(run)
    last = list(configs.values())[-1]
    if last.method.backend is not None:
        import torch

        x = torch.ones(1, 1, 2, 2, device=last.hardware.device)
        try:
            SemCKD(1, [1], [1], backend=last.method.backend).to(x.device)([x], [x])
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    for path in configs:
        if RunFolder(path.parent).is_run:
            raise ValueError(f"'{path.parent}' is a run itself, and the demo makes others in it: give another --out")
        RunFolder(path).check(overwrite=True, resume=False)
        ownership.check_writable(path)


def _without_teacher(configs: Iterable[TrainConfig]) -> Iterator[TrainConfig]:
    """The teacher's configuration, and that of the first student."""
    seen = set()
    for run in configs:
        if run.teacher is None and run.student.name not in seen:
            seen.add(run.student.name)
            yield run


def notes(run: RunFolder) -> str:
    """What the table and the attention do and do not show, one paragraph a line."""
    summary, attention = run.summary, run.attention()
    lines = [
        f"Each student has seen {summary['counts']['train_images']} labelled images, drawn from its seed; the teacher "
        "all of them. With all labels a student alone is right on 99%, which leaves little to distil."
    ]
    if attention is not None:
        mean = attention.weight[-1].mean(0)
        bound = upper_bound(len(mean), run.config.method.soft)
        lines.append(
            f"The attention gives {attention.teacher_layers[int(mean.argmax())]} of the teacher {mean.max():.3f} of "
            f"its weight, of at most {bound:.3f}: training favours the teacher layers that are easiest to match."
        )
    return "\n".join(lines)
