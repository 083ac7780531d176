"""Options and the closing table of ``pytest bench/``."""

from __future__ import annotations

import pytest

from .results import Row, as_text, store

_rows: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every shape and type")
    parser.addoption("--store", action="store_true", help="replace the stored rows in bench/results/")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        cases = metafunc.module.FULL if metafunc.config.getoption("full") else metafunc.module.QUICK
        metafunc.parametrize(("shape", "dtype"), cases, ids=[f"{shape}-{dtype}" for shape, dtype in cases])


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    return _rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _rows:
        return
    terminalreporter.section("pair loss: medians, and how many times faster than the reference")
    for line in as_text(_rows):
        terminalreporter.write_line(line)
    if config.getoption("store"):
        terminalreporter.write_line(f"stored in {store(_rows)}")
