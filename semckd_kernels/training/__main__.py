"""``python -m semckd_kernels.training``: distils a small ResNet on handwritten digits, by several methods."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

import semckd_kernels

from .config import Config, Recipe

# module names; all of them come with the extra [train]
DEPENDENCIES = ("torchvision", "sklearn", "matplotlib", "tqdm")
# on two idle cores the second thread saves a third of the time; on busy ones waiting for it has cost a factor of ten
CPU_THREADS = 1
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that answers bad input with one sentence; the usage is in ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got '{text}'")
        return value

    return parse


def positive(text: str) -> float:
    """Parses a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got '{text}'")
    return value


def make_parser() -> Parser:
    config, recipe = Config(), Recipe()
    parser = Parser(
        prog="python -m semckd_kernels.training",
        description="Trains a ResNet on scikit-learn's handwritten digits and distils a smaller one from it: alone, "
        "with KD, and with SemCKD, once as the plain reference and once with our kernels. A minute or two on a CPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/digits"), help="folder for results; %(default)s unless given"
    )
    parser.add_argument(
        "--epochs", type=whole(1, 10_000), help=f"epochs of each training run; {recipe.epochs} unless given or --quick"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 1_000_000),
        default=recipe.batch_size,
        help="samples a step; %(default)s unless given",
    )
    parser.add_argument(
        "--lr", type=positive, default=recipe.lr, help="highest learning rate; %(default)s unless given"
    )
    parser.add_argument(
        "--beta", type=positive, default=config.beta, help="weight of the SemCKD term; %(default)s unless given"
    )
    parser.add_argument(
        "--temperature", type=positive, default=config.temperature, help="temperature of KD; %(default)s unless given"
    )
    parser.add_argument(
        "--seed",
        type=whole(0, 2**63 - 1),
        default=recipe.seed,
        help="of parameters and sample order; %(default)s unless given",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; a GPU if there is one, unless given")
    parser.add_argument(
        "--threads",
        type=whole(1, 1024),
        default=CPU_THREADS,
        help="CPU threads; for networks this small more gain little, and lose much where other work shares the cores; "
        "%(default)s unless given",
    )
    parser.add_argument("--backend", help="of our criterion, such as cpu or triton; the fastest unless given")
    parser.add_argument("--quick", action="store_true", help="one epoch a run: shows that everything works, in seconds")
    return parser


def check_dependencies() -> str | None:
    """Why a dependency cannot be used, in one sentence."""
    for name in DEPENDENCIES:
        try:
            importlib.import_module(name)
        except Exception as error:
            # a torchvision of another torch raises RuntimeError, not ImportError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return f'{name} cannot be imported ({reason}): run pip install "semckd-kernels[train]"'
    return None


def check_device(text: str) -> str:
    """The device to run on, after a first value has been there and back.

    Raises:
        ValueError: it does not exist or cannot be used.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text
    try:
        torch.ones(1, device=name).item()
    except Exception as error:
        # torch raises half a dozen types here, with a sentence first and pages of hints behind it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"argument --device: '{text}' cannot be used: {reason}") from error
    return name


def check_backend(backend: str | None, device: str) -> None:
    """Raises ValueError where the backend does not exist or cannot serve the device."""
    x = torch.ones(1, 1, 2, 2, device=device)
    try:
        semckd_kernels.SemCKD(1, [1], [1], backend=backend).to(device)([x], [x])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"argument --backend: {error}") from error


def distil(args: argparse.Namespace, parser: Parser) -> int:
    """Checks, runs, prints and writes."""
    if reason := check_dependencies():
        parser.error(reason)
    # these need the optional dependencies
    from . import experiment, report, samples
    from .engine import TrainingError

    torch.set_num_threads(args.threads)
    try:
        device = check_device(args.device)
        check_backend(args.backend, device)
        report.check_folder(args.out)
    except OSError as error:
        parser.error(f"argument --out: cannot write to '{args.out}': {error.strerror or error}")
    except ValueError as error:
        parser.error(str(error))
    digits = samples.digits(device)
    count = len(digits.train.labels)
    if args.batch_size > count:
        parser.error(f"argument --batch-size: must be at most {count}, the number of training samples")
    epochs = args.epochs or (1 if args.quick else Recipe().epochs)
    recipe = Recipe(epochs=epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    config = Config(recipe, args.temperature, args.beta, device, args.backend)
    print(
        f"digits: {count} training and {len(digits.test.labels)} test images, epochs a run: {epochs}, device: {device}",
        flush=True,
    )
    try:
        results = experiment.run(config, digits, lambda line: print(line, flush=True))
    except TrainingError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"\n{report.table(results)}\n\n{report.notes(results)}", flush=True)
    try:
        report.write(results, args.out)
    except OSError as error:
        print(f"{parser.prog}: cannot write to '{args.out}': {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    print("Written: " + ", ".join(str(args.out / name) for name in report.FILES))
    return 0 if results.agreement.holds else EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return distil(args, parser)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: stopped; results are written at the end of a run only", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
