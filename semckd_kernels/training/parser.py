"""The command line's parser: one sentence for bad input, with the nearest name, and the parsers of values."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import EXIT_USAGE

# share of equal letters from which two names count as near: "epohcs" is near "epochs", "colour" is near no flag
NEAR = 0.72
# a beginning of fewer letters fits too many names
SHORTEST_BEGINNING = 3


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: one that begins with ``name``, or one that is spelled nearly so."""
    known = list(known)
    beginning = [other for other in known if other.startswith(name)]
    if len(name) >= SHORTEST_BEGINNING and len(beginning) == 1:
        return beginning[0]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=NEAR)), None)


def either(names: Sequence[str]) -> str:
    """``"a"``, ``"a or b"``, ``"a, b or c"``."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


class Parser(argparse.ArgumentParser):
    """A parser that answers bad input with one sentence; the usage is in ``--help``.

    ``also`` holds names that other trainers give to flags of this one, without dashes: an unknown flag that is near one
    of them is answered with ours.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # an abbreviation that is unique today may not be so tomorrow
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self.also: dict[str, str] = {}

    def show_usage(self, args: argparse.Namespace) -> int:
        """What a command does that was given without its subcommand: shows its help; returns the exit code."""
        self.print_help(sys.stderr)
        return EXIT_USAGE

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but a subcommand names what it does not know itself, before what is missing."""
        if args is not None:
            for flag in self._flags(args):
                if flag not in self._option_string_actions:
                    self._unknown(flag)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def _flags(self, args: Sequence[str]) -> Iterable[str]:
        """The arguments that argparse takes for flags of this parser, without their values."""
        for text in args:
            if text == "--" or (self._subparsers is not None and not text.startswith("-")):
                # what follows is no flag, or a subcommand's
                return
            if text.startswith("-") and len(text) > 1 and " " not in text and not _is_number(text):
                yield text.partition("=")[0]

    def _unknown(self, flag: str) -> NoReturn:
        ours = {text.lstrip("-"): text for text in self._option_string_actions}
        known = {**self.also, **ours}
        near = nearest(flag.lstrip("-").replace("_", "-").lower(), known)
        hint = f"did you mean {known[near]}?" if near else f"`{self.prog} --help` lists all"
        self.error(f"there is no flag {flag}: {hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names all choices, and the nearest one."""
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            near = nearest(str(value), choices)
            hint = f": did you mean '{near}'?" if near else ""
            raise argparse.ArgumentError(action, f"must be one of {', '.join(choices)}, got '{value}'{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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


def number(zero: bool) -> Callable[[str], float]:
    """A parser of finite numbers above zero, or from zero on."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            what = "a finite number of at least 0" if zero else "a finite number above 0"
            raise argparse.ArgumentTypeError(f"must be {what}, got '{text}'")
        return value

    return parse


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of values with commas between them."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    return parse


def folder_path(text: str) -> Path:
    """A parser of folders: an empty name, as of a variable that is not set, is not the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a folder, got an empty name ('.' is the working folder)")
    return Path(text)


COUNT, SEED = whole(1, 1_000_000_000), whole(0, 2**63 - 1)
POSITIVE, NOT_NEGATIVE = number(zero=False), number(zero=True)
