"""Options and the closing tables of ``pytest bench/``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .results import TABLES, Row, as_text, store

_rows: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every shape and type")
    parser.addoption(
        "--fp32", action="store_true", help="fp32 alone: torch computes bf16 in minutes where there are no units for it"
    )
    parser.addoption("--store", action="store_true", help="replace the stored rows in bench/results/")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        cases = metafunc.module.FULL if metafunc.config.getoption("full") else metafunc.module.QUICK
        if metafunc.config.getoption("fp32"):
            cases = list(dict.fromkeys((shape, "fp32") for shape, dtype in cases if dtype in ("fp32", "all")))
        metafunc.parametrize(("shape", "dtype"), cases, ids=[f"{shape}-{dtype}" for shape, dtype in cases])


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("full"))


@pytest.fixture(scope="session", autouse=True)
def _fastest_convolutions() -> Iterator[None]:
    # what trainers set where shapes do not change: the reference is not to be measured with second-best algorithms
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Where a bench leaves its rows; stored after each, so that one that fails or hangs loses only its own."""
    new: list[Row] = []
    yield new
    _rows.extend(new)
    if new and request.config.getoption("store"):
        store(new)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for op in TABLES:
        if rows := [row for row in _rows if row.op == op]:
            terminalreporter.section(f"{op}: medians, and how many times faster than the reference")
            for line in as_text(rows):
                terminalreporter.write_line(line)
    if _rows and config.getoption("store"):
        terminalreporter.write_line("stored in bench/results/")
