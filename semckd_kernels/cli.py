"""The console script ``semckd``: train, evaluate, report, analyze, demo, info.

Exit codes: 0 done, 1 failed on the way, 2 bad input (one sentence, before any work, nothing written), 130 and 143
stopped by Ctrl-C and SIGTERM with a checkpoint written.

Under torchrun: ``torchrun --nproc-per-node 2 -m semckd_kernels.cli train ...``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .__main__ import report
from .training import named_code
from .training.errors import EXIT_INTERRUPTED, EXIT_USAGE, first_line

# module names; all of them come with the extra [train]
DEPENDENCIES = ("torchvision", "sklearn", "tqdm")


def check_dependencies() -> str | None:
    """Why a package of the extra [train] cannot be used, in one sentence."""
    for name in DEPENDENCIES:
        try:
            importlib.import_module(name)
        except Exception as error:
            # a torchvision of another torch raises RuntimeError, not ImportError
            return f'{name} cannot be imported ({first_line(error)}): run pip install "semckd-kernels[train]"'
    return None


def make_parser() -> argparse.ArgumentParser:
    from .analysis import command
    from .training import demo, report_command
    from .training.arguments import add_train_arguments
    from .training.flags import Parser, folder_path

    parser = Parser(
        prog="semckd", description="Distillation by SemCKD: training, evaluation and analyses.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train a network, alone or from a teacher", allow_abbrev=False)
    add_train_arguments(train)
    train.set_defaults(run=run_train)
    evaluate = commands.add_parser("evaluate", help="test accuracy of a run's checkpoints", allow_abbrev=False)
    evaluate.add_argument("folder", type=folder_path, metavar="RUN", help="folder of the run")
    evaluate.add_argument("--which", choices=("best", "last", "both"), default="both", help="of its checkpoints")
    evaluate.add_argument("--device", default="cpu", help="%(default)s unless given")
    named_code.add_flag(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    report_command.add_parser(commands)
    demo.add_parser(commands)
    info = commands.add_parser("info", help="versions, backends, networks and presets", allow_abbrev=False)
    info.set_defaults(run=run_info)
    command.add_parser(commands)
    return parser


def run_info(args: argparse.Namespace) -> int:
    print(report())
    from .training import presets

    if reason := check_dependencies():
        print(f"{'networks':<16}{reason}")
    else:
        from .training import models

        print(f"{'networks':<16}{' '.join(models.names())}")
        print(f"{'':<16}torchvision/NAME, timm/NAME, package.module:factory")
    print(f"{'presets':<16}{' '.join(presets.NAMES)}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Top-1 and top-5 of the best and the last checkpoint, measured anew."""
    from .training.checkpoint import CheckpointError
    from .training.data.broken import describe
    from .training.evaluation import evaluate
    from .training.run_folder import RunFolder
    from .training.step import make_autocast

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
    from .training import command

    return command.train(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] not in ([], ["info"], ["-h"], ["--help"]) and (reason := check_dependencies()):
        print(f"semckd: {reason}", file=sys.stderr)
        return EXIT_USAGE
    args = make_parser().parse_args(arguments)
    try:
        with named_code.asked_for(args):
            return int(args.run(args))
    except KeyboardInterrupt:
        print("\nsemckd: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    # `python -m` searches the folder that it is started in before installed packages: a run's folder may hold a timm.py
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.exit(main())
