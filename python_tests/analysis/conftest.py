"""Finished runs that all tests of analyses read, on one thread: networks this small gain nothing from more."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from threads import one_thread

if TYPE_CHECKING:
    from semckd_kernels.training.run.folder import RunFolder

MISSING = [name for name in ("torchvision", "sklearn", "matplotlib", "tqdm", "captum") if find_spec(name) is None]
# captum is needed by Grad-CAM alone
GRAD_CAM = ["test_gradcam.py", "test_panels.py"]
collect_ignore_glob = (GRAD_CAM if MISSING == ["captum"] else ["test_*.py"]) if MISSING else []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if MISSING:
        what = "python_tests/analysis" + (", Grad-CAM" if MISSING == ["captum"] else "")
        terminalreporter.write_line(f"SKIPPED {what}: {', '.join(MISSING)} not installed")


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True, scope="module")
def charts_of_reports_are_not_drawn() -> Iterator[None]:
    from undrawn import undrawn

    with undrawn():
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """``teacher``, ``ce``, ``kd``, ``semckd`` and ``pair``; nothing may be written into them."""
    from tiny_runs import train_all
    from undrawn import undrawn

    with one_thread(), undrawn():
        return train_all(tmp_path_factory.mktemp("runs"))
