"""Runs pytest on the stand-in, with ``plugin.py``; to be called by ``child.run``."""

from __future__ import annotations

import contextlib
import io

import pytest


class _Reports:
    """What became of each test; of one that failed, the last lines of its report."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = "" if report.outcome == "passed" else f": {report.longreprtext[-1500:]}"
            self.outcomes[report.nodeid] = report.outcome + said


def run_pytest(arguments: list[str]) -> dict[str, str]:
    """Outcomes by test: ``passed``, or ``failed`` or ``skipped`` with the reason."""
    reports = _Reports()
    options = ["-p", f"{__package__}.plugin", "-p", "no:cacheprovider", "-q"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*options, *arguments], plugins=[reports])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}:\n{said.getvalue()[-3000:]}")
    return reports.outcomes
