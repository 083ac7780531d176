"""How the commands end: exit codes, and an error in one sentence."""

from __future__ import annotations

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# a process that was asked to stop by a signal ends with this and the signal's number
SIGNAL_BASE = 128


def typed_line(error: BaseException) -> str:
    """An error's type and :func:`first_line`: of code that may raise anything."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def first_line(error: BaseException) -> str:
    """What an error says before its hints and traces; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
