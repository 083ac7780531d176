"""The emulation as a fixture: each test that asks for ``emulation`` runs on the plain and on the observed build.

``SEMCKD_EMULATION`` names another build, or several; test_sanitized.py uses it.
``SEMCKD_REQUIRE_TOOLS=cuda_emulation`` turns a skip into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from emulation import CHOSEN, Emulation, MissingTool, build, load

REQUIRED = "cuda_emulation" in os.environ.get("SEMCKD_REQUIRE_TOOLS", "").split(",")


@pytest.fixture(scope="session")
def built() -> None:
    """Skips where the emulation cannot be built."""
    try:
        for name in CHOSEN:
            build(name)
    except MissingTool as missing:
        report = pytest.fail if REQUIRED else pytest.skip
        report(f"the CUDA emulation cannot be built: {missing}")


@pytest.fixture(params=CHOSEN)
def emulation(request: pytest.FixtureRequest, built: None) -> Iterator[Emulation]:
    with load(request.param) as loaded:
        yield loaded


@pytest.fixture
def observed(built: None) -> Iterator[Emulation]:
    if "observed" not in CHOSEN:
        pytest.skip("runs with the observed build only")
    with load("observed") as loaded:
        yield loaded
