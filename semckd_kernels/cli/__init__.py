"""The command line: the console script ``semckd``, and ``python -m semckd_kernels.cli`` for torchrun."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    # not before: what is imported with a working folder on the path could be a stranger's
    from .commands import main

    return main(argv)
