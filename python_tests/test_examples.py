"""Every example in a public docstring runs and shows what it says."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["backends", "functional", "modules.semckd_loss", "modules.self_attention"]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"semckd_kernels.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
