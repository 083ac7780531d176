"""Skips where there can be no stand-in; ``SEMCKD_REQUIRE_TOOLS=stand_in_cuda`` turns the skip into a failure."""

from __future__ import annotations

import os

import pytest

from .build import MissingTool, build

REQUIRED = "stand_in_cuda" in os.environ.get("SEMCKD_REQUIRE_TOOLS", "").split(",")


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """Every test of this folder needs the library."""
    try:
        build()
    except MissingTool as missing:
        report = pytest.fail if REQUIRED else pytest.skip
        report(f"the stand-in CUDA runtime cannot be used: {missing}")
