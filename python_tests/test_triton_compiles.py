"""The Triton kernels, compiled for every GPU named here without one: registers, spills, 128-bit accesses, tensor cores.

The budgets are what the kernels need now, rounded up; exceeding one is a change to look at, and to write down here if
it is worth it. The compiler runs in a child process, since Triton may be interpreted in this one.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import triton_resources
from triton_resources import LAYERS_CHANNELS, compile_criterion, compile_layers, compile_pair_loss

from semckd_kernels.backends import triton as _triton

# 64 registers let 1024 threads share a multiprocessor, which `config.BYTES_PER_THREAD` counts on. 96 of AMD's leave 5
# wavefronts a SIMD on gfx90a and gfx942 (512 registers a lane), 16 on gfx1100 (1536)
REGISTERS = {"sm_80": 72, "sm_90": 64, "sm_100": 64, "gfx90a": 96, "gfx942": 96, "gfx1100": 96}
# the criterion's kernels: NVIDIA and AMD, where triton 3.6 needs up to 68 more than 3.8. On sm_90 two programs of every
# product share a multiprocessor besides
CRITERION_REGISTERS = {
    "convert": (56, 56),
    "mean": (80, 104),
    "covariance": (112, 144),
    "sum_slots": (48, 48),
    "fold": (96, 128),
    "linear": (128, 176),
    "norm": (88, 112),
    "end_fwd": (128, 232),
    "errors": (32, 32),
    "end_d_h": (128, 160),
    "end_d_weight": (128, 264),
    "d_z": (56, 56),
    "linear_d_weight": (128, 208),
    "linear_norm_backward": (56, 64),
    "input_terms": (128, 168),
    "d_x": (136, 272),
}
PRODUCTS = {"linear", "end_fwd", "end_d_h", "end_d_weight", "d_x", "linear_d_weight"}
# products of the accumulation type, exact: in matrix instructions on AMD alone, which have them
EXACT = {"covariance", "fold", "input_terms"}
# the kernels of whole layers, likewise. Those with maps have 128-bit accesses
LAYERS_REGISTERS = {
    "rows": (72, 48),
    "pool": (72, 80),
    "similarity": (128, 144),
    "sum_splits": (40, 32),
    "embed": (112, 96),
    "energy": (96, 64),
    "loss": (48, 48),
    "embed_backward": (112, 96),
    "parameter_gradients": (80, 144),
    "map_gradient": (128, 168),
}
LOADS_MAPS = {"rows", "pool", "similarity", "map_gradient"}
STORES_MAPS = {"rows", "pool", "map_gradient"}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


class Table(NamedTuple):
    """Rows of compiled kernels, and their GPUs, types and channels by the function that compiled them."""

    rows: list[dict[str, Any]]
    jobs: dict[Any, list[tuple[Any, ...]]]

    def of(self, kernels: Collection[str], compiled_by: Any) -> list[dict[str, Any]]:
        """The rows of these kernels, all of which are there for each GPU, type and number of channels."""
        rows = [row for row in self.rows if row["kernel"] in kernels]
        # whole layers have one number of channels
        variants = [
            (arch, str(dtype)[6:], *(rest or (LAYERS_CHANNELS,))) for arch, dtype, *rest in self.jobs[compiled_by]
        ]
        found = {(row["arch"], row["s"], row["channels"], row["kernel"]) for row in rows}
        assert found == {(*variant, kernel) for variant in variants for kernel in kernels}
        return rows


# some, and with the slow tests all of them
@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def table(request: pytest.FixtureRequest) -> Table:
    pytest.importorskip("triton", reason="the triton package is not installed")
    package = Path(_triton.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, triton_resources.__file__, "--json", f"--{request.param}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Table(json.loads(done.stdout), triton_resources.jobs(request.param == "some"))


def test_pair_loss(table: Table) -> None:
    rows = [row for row in table.rows if row["channels"] is None]
    variants = collections.Counter((row["arch"], row["s"], row["t"]) for row in rows)
    wanted = [(arch, str(s)[6:], str(t)[6:]) for arch, s, t in table.jobs[compile_pair_loss]]
    assert variants == dict.fromkeys(wanted, 9)
    for row in rows:
        assert row["spills"] == 0, row
        assert row["registers"] <= REGISTERS[row["arch"]], row
        # every access to the maps of a pair that is aligned; a thread owns 32 bytes of the narrower map a step
        elements = 32 // min(BYTES[row["s"]], BYTES[row["t"]])
        vectors = {side: elements * BYTES[row[side]] // 16 for side in ("s", "t")}
        assert row["loads_128"] >= vectors["s"] + vectors["t"], row
        stores = vectors["s"] * ("bwd" in row["kernel"]) + vectors["t"] * row["kernel"].endswith("d_t")
        assert row["stores_128"] >= stores, row


def test_criterion(table: Table) -> None:
    for row in table.of(CRITERION_REGISTERS, compile_criterion):
        kernel, arch, aligned = row["kernel"], row["arch"], row["channels"] % 8 == 0
        assert row["spills"] == 0, row
        # an address an element costs registers, and wide accesses
        assert row["registers"] <= (CRITERION_REGISTERS[kernel][arch.startswith("gfx")] if aligned else 176), row
        if arch == "sm_90" and aligned:
            # a multiprocessor has 65536 registers, given out in eights
            assert 2 * -(-row["registers"] // 8) * 8 * row["threads"] <= 65536, row
        # errors of pixels are added up as scalars, since samples begin anywhere; whether copies are aligned is read
        # from a table, and the compiler for AMD does not follow it
        scalar = kernel == "errors" or (kernel == "convert" and arch.startswith("gfx"))
        assert row["loads_128"] > 0 or scalar or not aligned, row
        assert (row["tensor_core"] > 0) == (kernel in PRODUCTS or (kernel in EXACT and arch == "gfx942")), row


def test_layers(table: Table) -> None:
    for row in table.of(LAYERS_REGISTERS, compile_layers):
        kernel, arch = row["kernel"], row["arch"]
        assert row["spills"] == 0, row
        assert row["registers"] <= LAYERS_REGISTERS[kernel][arch.startswith("gfx")], row
        if arch == "sm_90":
            # two programs share a multiprocessor: its 65536 registers, given out in eights, and its shared memory
            assert 2 * -(-row["registers"] // 8) * 8 * row["threads"] <= 65536, row
            assert 2 * row["shared"] <= 227 * 1024, row
        assert row["loads_128"] > 0 or kernel not in LOADS_MAPS, row
        assert row["stores_128"] > 0 or kernel not in STORES_MAPS, row
        # tensor cores multiply 16-bit rows; fp32 without TF32 has none on NVIDIA's
        if kernel in ("similarity", "map_gradient") and row["s"] == "bfloat16":
            assert row["tensor_core"] > 0, row
