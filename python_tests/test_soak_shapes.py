"""A short form of the soaks that run on request."""

from __future__ import annotations

import sys

import pytest
import soak_shapes


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of pages")
def test_memory_is_flat_over_changing_shapes() -> None:
    # the gradients of one criterion kept a step would be 30 MB
    assert soak_shapes.growth_mb(80, warm_up=60, kinds=soak_shapes.FUSED, largest=6, different=30) < 2
