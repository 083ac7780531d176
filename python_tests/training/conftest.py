"""Training on one thread: networks this small gain nothing from more, and lose much on a machine that is shared."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from threads import one_thread

MISSING = [
    name for name in ("torchvision", "sklearn", "matplotlib", "tqdm", "jsonargparse", "yaml") if find_spec(name) is None
]
# in the folders below as well
collect_ignore_glob = ["*test_*.py"] if MISSING else []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if MISSING:
        terminalreporter.write_line(f"SKIPPED python_tests/training: {', '.join(MISSING)} not installed")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's run of one epoch, to be read only."""
    # needs what MISSING may name
    import training_nets
    from undrawn import undrawn

    out = tmp_path_factory.mktemp("runs") / "teacher"
    with one_thread(), undrawn():
        assert training_nets.train(out, "--epochs", "1", student="wide") == 0
    return out


@pytest.fixture(autouse=True, scope="module")
def charts_are_not_drawn() -> Iterator[None]:
    """But where a test says ``drawn``."""
    from undrawn import undrawn

    with undrawn():
        yield


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A process that was started in the background, as CI may be, inherits that it ignores this signal."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without charts, which take longer than the training of a tiny run."""
    from semckd_kernels.training.report import report

    monkeypatch.setattr(report, "render", lambda folder: f"<html>{folder.config}{folder.metrics()}</html>")
