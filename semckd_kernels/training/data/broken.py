"""Images that cannot be decoded: an error that names them, or left out and counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class DataError(ValueError):
    """A data set fails in the middle of the work, with the reason in one sentence."""


class Broken(NamedTuple):
    """Why a sample cannot be used. An exception would come out of a worker as a page of traceback."""

    # of its file, or what it is called without one
    path: str
    # the end of a sentence about it: "cannot be decoded: ..."
    reason: str


class BrokenImages:
    """Those that have been met, by path, with the reason.

    Args:
        skip: whether batches continue without them; otherwise the first one is an error.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.reasons: dict[str, str] = {}

    def add(self, found: Iterable[Broken]) -> None:
        """Raises DataError unless they are skipped."""
        reasons = {broken.path: broken.reason for broken in found}
        self.reasons |= reasons
        if reasons and not self.skip:
            raise DataError(describe(reasons))


def describe(reasons: dict[str, str]) -> str:
    """The first file, and how many more there are."""
    path, reason = next(iter(reasons.items()))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"image '{path}' {reason}{more}"
