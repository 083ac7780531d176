"""``semckd report RUN``: makes the report of a finished run again."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..install import pip_install
from ..training.errors import EXIT_USAGE
from ..training.parser import folder_path


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``report``."""
    text = "make report.html of a finished run again, from its files"
    parser = commands.add_parser("report", help=text, description=text)
    parser.add_argument("folder", type=folder_path, metavar="RUN", help="folder of the run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code; see ``cli``."""
    from ..training.run.folder import RunFolder

    try:
        from ..training.report import report
    except ImportError as error:
        return _fail(f"{error}: run {pip_install('semckd-kernels[plot]')}")
    try:
        folder = RunFolder(args.folder)
        # before the lock, which leaves a file
        folder.verify()
        with folder.locked():
            path = report.write(folder)
    except ValueError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror}" if error.filename else str(error))
    print(f"Written: {path}")
    return 0


def _fail(message: str) -> int:
    print(f"semckd report: {message}", file=sys.stderr)
    return EXIT_USAGE
