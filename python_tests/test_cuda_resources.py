"""The CUDA kernels, compiled for three architectures without a GPU: registers, spills, 16-byte accesses.

``resources/budget.json`` holds the registers that each kernel may use; ``python -m python_tests.resources
--write-budget`` stores what they use now, which is a change to look at. ``SEMCKD_REQUIRE_TOOLS=cuda_resources`` turns a
skip into a failure.
"""

from __future__ import annotations

import json
import os
import re

import pytest
from resources import cuda
from resources.cubin import MULTIPROCESSORS

REQUIRED = "cuda_resources" in os.environ.get("SEMCKD_REQUIRE_TOOLS", "").split(",")
BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
# packs of each map that a thread has in flight, the kernels' kUnroll
UNROLL = 2
# half of a multiprocessor's threads, with two 16-byte loads of each map in flight, ask for 64 KiB at a time: more than
# an H200 needs to be kept busy
LEAST_OCCUPANCY = 0.5


# one, and all with the slow tests
ARCHS = [pytest.param(arch, marks=() if arch == "sm_90" else pytest.mark.slow) for arch in MULTIPROCESSORS]


@pytest.fixture(scope="module", params=ARCHS)
def of_arch(request: pytest.FixtureRequest) -> list[cuda.Kernel]:
    if reason := cuda.why_not():
        report = pytest.fail if REQUIRED else pytest.skip
        report(f"the CUDA kernels cannot be looked at: {reason}")
    kernels = [kernel for source in cuda.SOURCES for kernel in cuda.compile_kernels(source, request.param)]
    # both ways: nine combinations of three types, and fp64
    assert len(kernels) == 2 * 10
    return kernels


def test_nothing_is_spilled(of_arch: list[cuda.Kernel]) -> None:
    spilling = [kernel for kernel in of_arch if kernel.spill_bytes or kernel.code.stack or kernel.code.local]
    assert not spilling


def test_registers_stay_within_their_budget(of_arch: list[cuda.Kernel]) -> None:
    stored = json.loads(cuda.BUDGET.read_text())
    over = [
        f"{kernel.arch} {kernel.name}: {kernel.code.registers} registers, budget {budget}"
        for kernel in of_arch
        if kernel.code.registers > (budget := stored["registers"].get(kernel.name, {}).get(kernel.arch, 0))
    ]
    assert not over, f"budgets are of nvcc {stored['nvcc']}, this is {cuda.compiler_version()}: " + "; ".join(over)


def test_enough_threads_fit(of_arch: list[cuda.Kernel]) -> None:
    few = [kernel for kernel in of_arch if kernel.occupancy < LEAST_OCCUPANCY]
    assert not few


def test_packs_are_accessed_whole(of_arch: list[cuda.Kernel]) -> None:
    for kernel in of_arch:
        assert kernel.code.narrow_in_vector_code == 0, kernel
        found = re.fullmatch(r"pair_loss_(fwd|bwd)<(\w+), (\w+)>", kernel.name)
        assert found, kernel.name
        narrower = min(BYTES[found[2]], BYTES[found[3]])
        accesses = UNROLL * sum(BYTES[dtype] // narrower for dtype in (found[2], found[3]))
        # the compiler may unroll further
        assert kernel.code.loads_128 >= accesses, kernel
        assert kernel.code.loads_128 % accesses == 0, kernel
        stores = accesses if found[1] == "bwd" else 0
        assert kernel.code.stores_128 >= stores, kernel
        assert (kernel.code.stores_128 > 0) == (stores > 0), kernel
