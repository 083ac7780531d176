"""Options, progress and closing tables of ``pytest bench/``.

pytest bench/                     in short: loss, criterion and step of one pair of networks, and one table
pytest bench/bench_step.py        one bench, on the shapes that it names QUICK
pytest bench/ --full              every bench on every shape and type
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from . import harness
from .results import OPS, Row, as_text, store
from .summary import SHAPE, as_summary

_rows: list[Row] = []
# what `pytest bench/` runs; the rest is behind --full
SHORT = ("bench_pair_loss", "bench_criterion", "bench_step", "bench_teacher")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every bench, on every shape and type")
    parser.addoption(
        "--fp32", action="store_true", help="fp32 alone: torch computes bf16 in minutes where there are no units for it"
    )
    parser.addoption("--store", action="store_true", help="replace the stored rows in bench/results/")


def is_short(config: pytest.Config) -> bool:
    """Whether neither ``--full`` nor a bench was asked for."""
    return not config.getoption("full") and not any(".py" in argument for argument in config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if is_short(config):
        # one table is enough
        config.option.benchmark_quiet = True
    if config.getoption("store") and is_short(config):
        raise pytest.UsageError("--store keeps rows of whole benches: add --full, or name a file such as bench_step.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" not in metafunc.fixturenames:
        return
    cases = metafunc.module.FULL if metafunc.config.getoption("full") else metafunc.module.QUICK
    if metafunc.config.getoption("fp32"):
        cases = list(dict.fromkeys((shape, "fp32") for shape, dtype in cases if dtype in ("fp32", "all")))
    if is_short(metafunc.config):
        cases = [case for case in cases if case == (SHAPE, "fp32")]
    metafunc.parametrize(("shape", "dtype"), cases, ids=[f"{shape}-{dtype}" for shape, dtype in cases])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_short(config):
        kept = [item for item in items if item.module.__name__.rpartition(".")[2] in SHORT]  # type: ignore[attr-defined]
        kept = [item for item in kept if "forward]" not in item.name]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("full"))


@pytest.fixture(scope="session")
def short(request: pytest.FixtureRequest) -> bool:
    return is_short(request.config)


@pytest.fixture(autouse=True)
def _progress(request: pytest.FixtureRequest) -> Iterator[None]:
    """A line for everything that takes seconds, also while output is captured."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"  {text}")

    harness.say = say
    say(f"\n{request.node.name}: check")
    yield
    harness.say = harness.silent


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
    if not _rows:
        return
    for op in () if is_short(config) else OPS:
        if found := [row for row in _rows if row.op == op]:
            terminalreporter.section(f"{op}: medians, and how many times faster than the reference")
            for line in as_text(found):
                terminalreporter.write_line(line)
    terminalreporter.section("in short")
    for line in as_summary(_rows):
        terminalreporter.write_line(line)
    if config.getoption("store"):
        terminalreporter.write_line("stored in bench/results/")
