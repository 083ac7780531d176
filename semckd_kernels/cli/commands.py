"""The console script ``semckd``: train, evaluate, report, compare, analyze, export, demo, info.

Exit codes: 0 done, 1 failed on the way, 2 bad input (one sentence, before any work, nothing written), 130 and 143
stopped by Ctrl-C and SIGTERM with a checkpoint written.

Under torchrun: ``torchrun --nproc-per-node 2 -m semckd_kernels.cli train ...``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from .. import __version__
from ..environment import report
from ..install import pip_install
from ..training import named_code
from ..training.errors import EXIT_INTERRUPTED, EXIT_USAGE, first_line

# module names and the packages they are in; all of them come with the extra [train]
DEPENDENCIES = {
    "torchvision": "torchvision",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "jsonargparse": "jsonargparse",
    "yaml": "pyyaml",
}


def check_dependencies() -> str | None:
    """Why a package of the extra [train] cannot be used, in one sentence."""
    for name, package in DEPENDENCIES.items():
        try:
            importlib.import_module(name)
        except Exception as error:
            # a torchvision of another torch raises RuntimeError, not ImportError
            broken = not isinstance(error, ModuleNotFoundError) and _is_installed(package)
            advice = pip_install("semckd-kernels[train]", reinstall=package if broken else None)
            return f"{name} cannot be imported ({first_line(error)}): run {advice}"
    return None


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def make_parser() -> argparse.ArgumentParser:
    from ..training import presets
    from ..training.parser import Parser, folder_path
    from . import analyze as command
    from . import compare, demo
    from . import export as export_command
    from . import report as report_command
    from .arguments import add_train_arguments

    parser = Parser(prog="semckd", description="Distillation by SemCKD: training, evaluation and analyses.")
    parser.add_argument("--version", action="version", version=f"semckd_kernels {__version__}")
    parser.set_defaults(run=parser.show_usage)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser("train", help="train a network, alone or from a teacher")
    add_train_arguments(train)
    train.set_defaults(run=run_train)
    evaluate = commands.add_parser("evaluate", help="measure the test accuracy of a run's checkpoints")
    evaluate.add_argument("folder", type=folder_path, metavar="RUN", help="folder of the run")
    text = "evaluate this checkpoint (default: %(default)s)"
    evaluate.add_argument("--which", choices=("best", "last", "both"), default="both", help=text)
    text = "compute on this device (default: %(default)s)"
    evaluate.add_argument("--device", metavar="NAME", default="cpu", help=text)
    named_code.add_flag(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    report_command.add_parser(commands)
    compare.add_parser(commands)
    export_command.add_parser(commands)
    demo.add_parser(commands)
    info = commands.add_parser("info", help="show versions, backends, networks and presets")
    text = "show what this preset sets, instead"
    info.add_argument("preset", metavar="PRESET", nargs="?", choices=presets.NAMES, help=text)
    info.set_defaults(run=run_info, needs_packages=False)
    command.add_parser(commands)
    return parser


def run_info(args: argparse.Namespace) -> int:
    from ..training import presets
    from . import arguments

    if args.preset:
        print(f"`semckd train --preset {args.preset}` stands for these flags; given beside it, a flag replaces one\n")
        print(arguments.preset_table(args.preset))
        return 0
    print(report())
    if reason := check_dependencies():
        print(f"{'networks':<16}{reason}")
    else:
        from ..training import models

        print(f"{'networks':<16}{' '.join(models.names())}")
        print(f"{'':<16}torchvision/NAME, timm/NAME, package.module:factory")
    print(f"{'presets':<16}{' '.join(presets.NAMES)}; `semckd info PRESET` shows one")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Top-1 and top-5 of the best and the last checkpoint, measured again."""
    from ..training.data.broken import describe
    from ..training.loop.evaluation import evaluate
    from ..training.loop.step import make_autocast
    from ..training.run.checkpoint import CheckpointError
    from ..training.run.folder import RunFolder

    folder, run = RunFolder(args.folder), None
    for which in ("best", "last") if args.which == "both" else (args.which,):
        try:
            if run is None:
                run = folder.load(args.device, which)
            else:
                folder.reload(run, which)
            found = evaluate(run.student, run.data.test_batches(), make_autocast(run.config.hardware))
        except (ValueError, OSError, CheckpointError) as error:
            print(f"semckd evaluate: {error}", file=sys.stderr)
            return EXIT_USAGE
        assert found is not None
        print(f"{which}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.4f}, {found.images} images")
    if run is not None and (reasons := run.data.broken.reasons):
        print(f"semckd evaluate: left out {len(reasons)} images: {describe(reasons)}", file=sys.stderr)
    return 0


def run_train(args: argparse.Namespace) -> int:
    from . import train as command

    if args.print_config:
        return command.print_config(args)
    if args.out is None:
        print("semckd train: a folder for the run is needed: give --out DIR", file=sys.stderr)
        return EXIT_USAGE
    return command.train(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    needs_packages = args.command is not None and getattr(args, "needs_packages", True)
    if needs_packages and (reason := check_dependencies()):
        print(f"semckd: {reason}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with named_code.asked_for(args):
            return int(args.run(args))
    except KeyboardInterrupt:
        print("\nsemckd: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
