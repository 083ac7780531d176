"""``semckd analyze``: the paper's analyses of finished runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..install import pip_install
from ..training import named_code
from ..training.errors import EXIT_FAILED, EXIT_USAGE, SIGNAL_BASE
from ..training.flags import in_flags
from ..training.parser import COUNT, folder_path, listed, whole

if TYPE_CHECKING:
    from ..training.run_folder import RunFolder
    from .runs import Result

DEFAULT_IMAGES = (0, 1, 2, 3)
# arguments of the analyses, and the flags that set them
ARGUMENTS = {"indices": "--images", **{name: f"--{name}" for name in ("pairs", "layer", "target", "weights")}}


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``analyze``; nothing heavy is imported before one of its analyses runs."""
    parser = commands.add_parser("analyze", help="make the paper's analyses of finished runs", description=__doc__)
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS")
    parser.set_defaults(run=parser.show_usage, needs_packages=False)
    for add in (_add_attention, _add_mismatch, _add_single_pairs, _add_gradcam):
        add(analyses)


def _new(analyses: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """A parser with what all analyses take."""
    parser: argparse.ArgumentParser = analyses.add_parser(name, help=text, description=text)
    parser.add_argument("runs", type=folder_path, nargs="+", metavar="RUN", help="folder of a finished run")
    text = "write the files into this folder (default: RUN/analysis of the first run, which its report links)"
    parser.add_argument("--out", type=folder_path, metavar="DIR", help=text)
    named_code.add_flag(parser)
    parser.set_defaults(run=run, needs_packages=True, prog=parser.prog)
    return parser


def _choice(parser: argparse.ArgumentParser, name: str, text: str, *choices: str) -> None:
    """A flag with choices, of which the first is the default."""
    parser.add_argument(name, choices=choices, default=choices[0], help=f"{text} (default: %(default)s)")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    _choice(parser, "--which", "analyze this checkpoint", "best", "last")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="compute on this device (default: %(default)s)")


def _add_attention(analyses: Any) -> None:
    parser = _new(analyses, "attention", "show the mean attention over the test images, and over epochs", run_attention)
    _add_loading(parser)
    parser.add_argument("--by-class", action="store_true", help="show the mean over the images of each class, too")


def _add_mismatch(analyses: Any) -> None:
    text = "measure the semantic mismatch of student and teacher (our reading of the paper's score)"
    parser = _new(analyses, "mismatch", text, run_mismatch)
    _add_loading(parser)
    _choice(parser, "--distance", "measure how far similarities are apart by this norm", "frobenius", "l1")
    _choice(parser, "--similarity", "compare samples by this similarity", "gram", "cosine")
    text = "weigh pairs of layers by this association; auto takes what the run was trained with"
    _choice(parser, "--weights", text, "auto", "attention", "position", "uniform")


def _add_single_pairs(analyses: Any) -> None:
    text = "train one student for each pair of layers: shows where feature distillation does harm"
    parser = _new(analyses, "single-pairs", text, run_single_pairs)
    text = "train each student for this many epochs (default: as the first run with a teacher)"
    parser.add_argument("--epochs", type=COUNT, metavar="INT", help=text)
    text = "train these pairs of student and teacher layer, counted from 0 (default: all)"
    parser.add_argument("--pairs", type=_pair, nargs="+", metavar="I,J", help=text)
    parser.add_argument("--device", metavar="NAME", help="train on this device (default: as that run)")


def _add_gradcam(analyses: Any) -> None:
    parser = _new(analyses, "gradcam", "show Grad-CAM of the teacher and of each run's student", run_gradcam)
    _add_loading(parser)
    parser.add_argument(
        "--images",
        type=listed(whole(0, 2**62)),
        metavar="INT,...",
        default=DEFAULT_IMAGES,
        help=f"explain these images of the test set (default: {','.join(map(str, DEFAULT_IMAGES))})",
    )
    text = "take the map of this module, in every network (default: each network's last map)"
    parser.add_argument("--layer", metavar="PATH", help=text)
    _choice(parser, "--target", "explain this class", "true", "predicted")


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
        print(f"{args.prog}: {stopped}; the same command resumes", file=sys.stderr)
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
        print(f"{args.prog}: {error}: run {pip_install('semckd-kernels[plot]')}", file=sys.stderr)
        return EXIT_USAGE
    from ..training.checkpoint import CheckpointError
    from ..training.ownership import check_writable
    from .runs import finished, link

    try:
        folders = [finished(path) for path in args.runs]
        outs = [args.out / path.resolve().name if args.out else path / "analysis" for path in args.runs]
        if not each or len(outs) == 1:
            outs = [_out(args)]
        for out in outs:
            check_writable(out)
        results = compute(folders)
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"{args.prog}: {in_flags(str(error), ARGUMENTS)}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"{args.prog}: '{error.filename}': {error.strerror or error}", file=sys.stderr)
        return EXIT_USAGE
    for result, out in zip(results, outs, strict=True):
        try:
            paths = result.write(out)
            print(f"{result.summary}\n\nWritten: {', '.join(map(str, paths))}\n")
            for folder in folders:
                link(folder, out)
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            print(f"{args.prog}: cannot write to '{out}', or link it in the report: {reason}", file=sys.stderr)
            return EXIT_FAILED
    return 0
