"""Images that cannot be decoded, over all processes of a run: when to stop, and what to say."""

from __future__ import annotations

import sys

from ..data.broken import describe
from ..preparation import Setup


class ImageWatch:
    """Batches continue without broken images until all processes can stop together, or for good where they are skipped.

    Args:
        setup: of the run; its data stop raising errors of single images.
    """

    def __init__(self, setup: Setup) -> None:
        self.ranks, self.own = setup.ranks, setup.data.broken
        self.skip = setup.config.data.skip_broken
        self.own.skip = True
        # of all processes
        self.reasons: dict[str, str] = {}

    @property
    def must_stop(self) -> bool:
        """Whether this process has met one that is not to be skipped."""
        return bool(self.own.reasons) and not self.skip

    def look(self) -> str | None:
        """Brings together what processes have found; returns why all of them must stop."""
        before = len(self.reasons)
        for reasons in self.ranks.gather(self.own.reasons):
            self.reasons |= reasons
        if len(self.reasons) == before:
            return None
        problem = describe(self.reasons)
        if not self.skip:
            return f"{problem}; mend or remove it, or give --skip-broken"
        if self.ranks.is_main:
            print(f"semckd train: leaves out {len(self.reasons)} so far: {problem}", file=sys.stderr, flush=True)
        return None
