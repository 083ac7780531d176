"""``semckd compare``: finished runs side by side, and which of their differences are within noise."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from ..install import pip_install
from ..training.errors import EXIT_FAILED, EXIT_USAGE
from ..training.parser import folder_path

# modules, and the packages that they come with
NEEDED = ("matplotlib", "jinja2", "scipy")


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``compare``."""
    text = "compare finished runs: mean and deviation over seeds, and which differences are within noise"
    parser = commands.add_parser("compare", help=text, description=text)
    text = "folder of a finished run, or one that holds some"
    parser.add_argument("runs", type=folder_path, nargs="+", metavar="RUN", help=text)
    text = "write comparison.html, CSV and LaTeX into this folder (default: comparison, beside the runs)"
    parser.add_argument("--out", type=folder_path, metavar="DIR", help=text)
    text = "compare accuracies after this epoch of each run (default: %(default)s)"
    parser.add_argument("--epoch", choices=("last", "best"), default="last", help=text)
    parser.set_defaults(run=run, prog=parser.prog)


def run(args: argparse.Namespace) -> int:
    """Checks, compares, and only then writes and prints; returns the exit code."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return _fail(f"{error}: run {pip_install('semckd-kernels[plot]')}", EXIT_USAGE)
    from ..analysis.comparison import page
    from ..analysis.comparison.comparison import compare, default_out
    from ..training.run.ownership import check_writable

    try:
        comparison = compare(args.runs, args.epoch)
        out = args.out or default_out(comparison)
        check_writable(out)
        result = page.result(comparison, out)
    except ValueError as error:
        return _fail(str(error), EXIT_USAGE)
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror or error}", EXIT_USAGE)
    try:
        paths = result.write(out)
    except OSError as error:
        return _fail(f"cannot write to '{out}': {error.strerror or error}", EXIT_FAILED)
    print(f"{result.summary}\n\nWritten: {', '.join(map(str, paths))}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"semckd compare: {message}", file=sys.stderr)
    return code
