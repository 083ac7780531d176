"""Triton's compiler, stopped before it makes machine code, which nobody executes here: 10 ms a program, not 400.

What a call specialises on, the kernel's own code and its launcher are as always. ``SEMCKD_STAND_IN_COMPILE=1`` lets the
compiler finish.
"""

from __future__ import annotations

import re
from typing import Any

from triton.backends.nvidia.compiler import CUDABackend

from .build import COMPILES


def _no_code(source: Any, metadata: dict[str, Any]) -> bytes:
    """In place of a cubin, with the metadata that later stages would have added."""
    found = re.search(r"tt\.func public @(\w+)", str(source))
    assert found, "the program has no public function"
    sizes = ("shared", "tmem_size", "global_scratch_size", "profile_scratch_size")
    metadata.update(dict.fromkeys(sizes, 0))
    metadata.update(global_scratch_align=1, profile_scratch_align=1, tensordesc_meta=None, name=found[1])
    return b"no code"


def install() -> None:
    """From here on, programs have no code."""
    if COMPILES:
        return
    add_stages = CUDABackend.add_stages

    def shortened(self: Any, stages: dict[str, Any], *arguments: Any) -> None:
        add_stages(self, stages, *arguments)
        for name in ("ttgir", "llir", "ptx"):
            del stages[name]
        stages["cubin"] = _no_code

    CUDABackend.add_stages = shortened
