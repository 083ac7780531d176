"""Backends as fixtures: every test that asks for ``backend`` runs once on each one that serves here.

The session's header names the backends that are left out, and why. ``SEMCKD_REQUIRE=cuda,triton`` refuses to start
where a named backend does not serve, so that a machine with a GPU cannot skip it unnoticed.
"""

from __future__ import annotations

import os

import process_environment  # noqa: F401  # before torch
import pytest
from served import MISSING, SERVED, Backend

from semckd_kernels import backends

# longest first: two processes that take file by file then end together
LONGEST = (
    "test_criterion.py",
    "test_triton_compiles.py",
    "test_cases.py",
    "test_distributed.py",
    "test_criterion_stages.py",
    "test_run_damage.py",
    "test_criterion_autograd.py",
    "test_engine.py",
    "test_resume.py",
    "test_criterion_training.py",
    "test_emulation.py",
    "test_pair_loss.py",
    "test_backends.py",
    "test_cpu_stages.py",
    "test_ledger.py",
)


def pytest_configure() -> None:
    required = [name for name in os.environ.get("SEMCKD_REQUIRE", "").split(",") if name]
    for name in required:
        if name not in backends.NAMES:
            raise pytest.UsageError(f"SEMCKD_REQUIRE names '{name}', which is not one of {', '.join(backends.NAMES)}")
        if name in MISSING:
            raise pytest.UsageError(f"SEMCKD_REQUIRE names '{name}', which does not serve here: {MISSING[name]}")


def pytest_report_header() -> list[str]:
    served = ", ".join(f"{name} on {device}" for name, device in SERVED)
    return [f"backends: {served}", *(f"SKIPPED backend {name}: {reason}" for name, reason in MISSING.items())]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks what ``slow_interpreted`` says."""
    if mark := item.get_closest_marker("slow_interpreted"):
        params = item.callspec.params  # type: ignore[attr-defined]
        interpreted = [value for value in params.values() if isinstance(value, Backend) and value.interpreted]
        if interpreted and mark.kwargs.items() <= params.items():
            item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(params=SERVED, ids=lambda b: b.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that serves here."""
    return request.param


@pytest.fixture(params=[b for b in SERVED if b.name != "reference"], ids=lambda b: b.name)
def kernel(request: pytest.FixtureRequest) -> Backend:
    """Each backend with kernels of its own: all but the reference."""
    return request.param
