"""``semckd analyze``: the paper's analyses of finished runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training import named_code
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE
from ..training.flags import COUNT, folder_path, listed, whole

if TYPE_CHECKING:
    from ..training.run_folder import RunFolder
    from .runs import Result

DEFAULT_IMAGES = (0, 1, 2, 3)


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``analyze``; nothing heavy is imported before one of its analyses runs."""
    parser = commands.add_parser(
        "analyze", help="the paper's analyses of finished runs", allow_abbrev=False, description=__doc__
    )
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    for add in (_add_attention, _add_mismatch, _add_single_pairs, _add_gradcam):
        add(analyses)


def _new(analyses: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """A parser with what all analyses take."""
    parser: argparse.ArgumentParser = analyses.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("runs", type=folder_path, nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--out", type=folder_path, help="folder for the files; RUN/analysis of the first run unless given"
    )
    named_code.add_flag(parser)
    parser.set_defaults(run=run, prog=parser.prog)
    return parser


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--which", choices=("best", "last"), default="best", help="checkpoint; %(default)s unless given"
    )
    parser.add_argument("--device", default="cpu", help="%(default)s unless given")


def _add_attention(analyses: Any) -> None:
    parser = _new(analyses, "attention", "mean attention over the test images, and over epochs", run_attention)
    _add_loading(parser)
    parser.add_argument("--by-class", action="store_true", help="also the mean over the images of each class")


def _add_mismatch(analyses: Any) -> None:
    text = "semantic mismatch between student and teacher (our reading of the paper's score)"
    parser = _new(analyses, "mismatch", text, run_mismatch)
    _add_loading(parser)
    parser.add_argument("--distance", choices=("frobenius", "l1"), default="frobenius", help="%(default)s unless given")
    parser.add_argument(
        "--similarity", choices=("gram", "cosine"), default="gram", help="of samples; %(default)s unless given"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "attention", "position", "uniform"),
        default="auto",
        help="which layers are associated; what the run was trained with unless given",
    )


def _add_single_pairs(analyses: Any) -> None:
    text = "one student for each single pair of layers: where feature distillation does harm"
    parser = _new(analyses, "single-pairs", text, run_single_pairs)
    parser.add_argument("--epochs", type=COUNT, help="of each student; as the first run with a teacher unless given")
    parser.add_argument(
        "--pairs", type=_pair, nargs="+", metavar="I,J", help="student and teacher layer, from 0; all unless given"
    )
    parser.add_argument("--device", help="as that run unless given")


def _add_gradcam(analyses: Any) -> None:
    parser = _new(analyses, "gradcam", "Grad-CAM panels of the teacher and of each run's student", run_gradcam)
    _add_loading(parser)
    parser.add_argument(
        "--images", type=listed(whole(0, 2**62)), default=DEFAULT_IMAGES, help="of the test set; 0,1,2,3 unless given"
    )
    parser.add_argument("--layer", help="module path, in every network; each one's last map unless given")
    parser.add_argument(
        "--target", choices=("true", "predicted"), default="true", help="class to explain; %(default)s unless given"
    )


def _pair(text: str) -> tuple[int, int]:
    try:
        i, j = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two whole numbers with a comma between them, got '{text}'") from None
    return i, j


def run_attention(args: argparse.Namespace) -> int:
    """One analysis a run."""

    def compute(folders: list[RunFolder]) -> list[Result]:
        from . import attention

        for folder in folders:
            attention.check(folder)
        return [attention.analyze(folder, args.which, args.device, args.by_class) for folder in folders]

    return _run(args, compute, each=True)


def run_mismatch(args: argparse.Namespace) -> int:
    def compute(folders: list[RunFolder]) -> list[Result]:
        from .mismatch_runs import analyze

        options = {"distance": args.distance, "kind": args.similarity, "weighting": args.weights}
        return [analyze(folders, **options, which=args.which, device=args.device)]

    return _run(args, compute)


def run_gradcam(args: argparse.Namespace) -> int:
    def compute(folders: list[RunFolder]) -> list[Result]:
        from .panels import analyze

        options = {"layer": args.layer, "target": args.target, "which": args.which, "device": args.device}
        return [analyze(folders, args.images, **options)]

    return _run(args, compute)


def run_single_pairs(args: argparse.Namespace) -> int:
    """Checks the whole sweep, trains what is missing, and compares."""
    from ..training.records import TrainingError
    from ..training.signals import Stopped

    def compute(folders: list[RunFolder]) -> list[Result]:
        from ..training.checkpoint import CheckpointError
        from . import single_pairs

        sweep = single_pairs.plan(
            folders, _out(args) / "single_pairs", pairs=args.pairs, epochs=args.epochs, device=args.device
        )
        try:
            single_pairs.train(sweep)
        except (CheckpointError, OSError) as error:
            # past the checks: not the input's fault
            raise TrainingError(str(error)) from error
        print()
        return [single_pairs.result(sweep)]

    try:
        return _run(args, compute)
    except Stopped as stopped:
        print(f"{args.prog}: {stopped}; the same command goes on", file=sys.stderr)
        return SIGNAL_BASE + stopped.number
    except TrainingError as error:
        print(f"{args.prog}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _out(args: argparse.Namespace) -> Path:
    out: Path = args.out or args.runs[0] / "analysis"
    return out


def _run(args: argparse.Namespace, compute: Callable[[list[RunFolder]], list[Result]], each: bool = False) -> int:
    """Checks, computes, and only then writes and prints.

    Args:
        args: of the command line.
        compute: finished runs to results.
        each: results are one a run, each into a folder of its own.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        print(f'{args.prog}: {error}: pip install "semckd-kernels[plot]"', file=sys.stderr)
        return EXIT_USAGE
    from ..training.checkpoint import CheckpointError
    from ..training.ownership import check_writable
    from .runs import finished

    try:
        folders = [finished(path) for path in args.runs]
        outs = [args.out / path.resolve().name if args.out else path / "analysis" for path in args.runs]
        if not each or len(outs) == 1:
            outs = [_out(args)]
        for out in outs:
            check_writable(out)
        results = compute(folders)
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"{args.prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"{args.prog}: '{error.filename}': {error.strerror or error}", file=sys.stderr)
        return EXIT_USAGE
    for result, out in zip(results, outs, strict=True):
        try:
            paths = result.write(out)
        except OSError as error:
            print(f"{args.prog}: cannot write to '{out}': {error.strerror or error}", file=sys.stderr)
            return EXIT_FAILED
        print(f"{result.summary}\n\nWritten: {', '.join(map(str, paths))}\n")
    return 0
