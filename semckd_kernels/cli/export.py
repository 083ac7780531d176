"""``semckd export RUN``: the student of a finished run as a file for use elsewhere, with a model card."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..training import named_code
from ..training.errors import EXIT_FAILED, EXIT_USAGE
from ..training.export_formats import FILES, FORMATS
from ..training.parser import folder_path


def add_parser(commands: Any) -> None:
    """Adds the subcommand ``export``."""
    text = "write the student of a finished run for use elsewhere, checked against the run, with a model card"
    parser = commands.add_parser("export", help=text, description=text)
    parser.add_argument("folder", type=folder_path, metavar="RUN", help="folder of the run")
    text = f"write these formats: {', '.join(FILES.values())} (default: state-dict)"
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["state-dict"], help=text)
    text = "export this checkpoint (default: %(default)s)"
    parser.add_argument("--which", choices=("best", "last"), default="best", help=text)
    text = "write the files into this folder (default: RUN/export)"
    parser.add_argument("--out", type=folder_path, metavar="DIR", help=text)
    named_code.add_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code; see ``cli``."""
    from ..training.export import ExportError, export
    from ..training.run.checkpoint import CheckpointError

    try:
        made = export(args.folder, tuple(args.format), args.out, args.which)
    except ExportError as error:
        return _fail(str(error), EXIT_FAILED)
    except (ValueError, CheckpointError) as error:
        return _fail(str(error), EXIT_USAGE)
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror}" if error.filename else str(error), EXIT_USAGE)
    for name, difference in made.differences.items():
        print(f"{name}: logits of {made.images} test images differ from the run's by at most {difference:.2g}")
    print(f"Written: {', '.join(map(str, made.files))}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"semckd export: {message}", file=sys.stderr)
    return code
