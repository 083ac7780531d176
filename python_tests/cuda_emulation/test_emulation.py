"""The emulation itself: primitives give what a GPU gives, and every class of bug is caught and located."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulation import ASCENDING, DESCENDING, RANDOM, SCHEDULES, Emulation, Schedule, load, sanitizer_environment

CASES = (
    "primitives",
    "divergent_barrier",
    "deadlock",
    "exited_lane",
    "caller_not_in_mask",
    "source_not_in_mask",
    "shared_overrun",
    "misaligned_load",
    "uninitialised_device_read",
    "blocks_race",
    "read_only_load",
    "read_only_load_after_store",
)
# cudaErrorLaunchFailure
LAUNCH_FAILURE = 719

BUGS = (
    "none",
    "missing_sync",
    "overrun",
    "masked_overrun",
    "uninitialised_flag",
    "uninitialised_total",
    "ticket_race",
    "missing_fence",
)
# an odd number of elements, so that the last pack is cut, in several chunks of 512
N = 4 * 512 + 37


def run_case(emulation: Emulation, name: str, values: int = 514) -> tuple[int, np.ndarray]:
    out = emulation.buffer("int32", 514)
    out.array[:values] = 0
    if values == 514:
        emulation.library.emulation_mark_written(out.pointer)
    error = emulation.library.emulation_selftest(CASES.index(name), ctypes.c_void_p(out.pointer))
    return error, out.array


def message(emulation: Emulation) -> str:
    return str(emulation.library.emulation_error().decode())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_primitives(emulation: Emulation, schedule: Schedule) -> None:
    emulation.schedule(schedule)
    error, out = run_case(emulation, "primitives")
    emulation.check(error)
    rows = out[:512].reshape(8, 64)
    thread = np.arange(64)
    lane = thread % 32
    np.testing.assert_array_equal(rows[0], 63 - thread)
    np.testing.assert_array_equal(rows[1], 1)
    np.testing.assert_array_equal(rows[2], np.where(lane % 8 < 4, thread + 4, thread))
    np.testing.assert_array_equal(rows[3], np.where(lane > 0, thread - 1, thread))
    np.testing.assert_array_equal(rows[4], thread // 16 * 16 + 5)
    np.testing.assert_array_equal(rows[5], np.where(lane < 8, thread ^ 1, -1))
    np.testing.assert_array_equal(rows[6], 1)
    np.testing.assert_array_equal(rows[7], lane ^ 1)
    assert out[512] == 64
    assert out[513] == 63


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("divergent_barrier", "divergent __syncthreads"),
        ("deadlock", "deadlock: 27 threads at __syncthreads, 5 in warp collectives, 0 exited"),
        ("exited_lane", "mask ffffffff names lanes 00000008 that have exited or do not exist"),
        ("caller_not_in_mask", "the calling lane is not in the mask"),
        ("source_not_in_mask", "shuffle from lane 9, which is not in the mask"),
    ],
)
@pytest.mark.parametrize("schedule", [ASCENDING, DESCENDING, RANDOM[0]])
def test_misused_collectives_are_located(emulation: Emulation, name: str, expected: str, schedule: Schedule) -> None:
    emulation.schedule(schedule)
    error, _ = run_case(emulation, name)
    assert error == LAUNCH_FAILURE
    assert expected in message(emulation)
    assert "selftest.cu:" in message(emulation)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uninitialised_device_read", "uninitialised read of device memory"),
        ("shared_overrun", "uninitialised read of shared memory"),
        ("blocks_race", "write-after-write race in device memory"),
        ("read_only_load", "store to device memory that this kernel loads as read-only"),
        ("read_only_load_after_store", "read-only load of memory that this kernel writes"),
    ],
)
def test_observed_memory_errors_are_located(observed: Emulation, name: str, expected: str) -> None:
    error, _ = run_case(observed, name, values=0 if name.startswith("uninitialised") else 514)
    assert error == LAUNCH_FAILURE
    assert expected in message(observed)
    assert "selftest.cu:" in message(observed)


def run_bug(emulation: Emulation, name: str) -> tuple[int, float, float]:
    """The error, the sum that came out and the right one."""
    x = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    buffers = (
        emulation.upload(x),
        emulation.buffer("float32", -(-N // 512)),
        emulation.upload(np.zeros(1, np.uint32)),
        emulation.buffer("float32", 1),
    )
    x_ptr, sums, ticket, out = (ctypes.c_void_p(buffer.pointer) for buffer in buffers)
    error = emulation.library.emulation_planted_bug(BUGS.index(name), x_ptr, N, sums, ticket, out)
    return error, float(buffers[3].array[0]), float((x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_kernel_without_a_bug_passes(emulation: Emulation, schedule: Schedule) -> None:
    emulation.schedule(schedule)
    error, total, expected = run_bug(emulation, "none")
    emulation.check(error)
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing_sync", "uninitialised read of shared memory"),
        ("uninitialised_flag", "uninitialised read of shared memory"),
        ("uninitialised_total", "uninitialised read of shared memory"),
        ("ticket_race", "race in device memory"),
        ("missing_fence", "read-after-write race in device memory"),
    ],
)
@pytest.mark.parametrize("schedule", [ASCENDING, DESCENDING, RANDOM[0]])
def test_planted_races_are_caught(observed: Emulation, name: str, expected: str, schedule: Schedule) -> None:
    observed.schedule(schedule)
    error, _, _ = run_bug(observed, name)
    assert error == LAUNCH_FAILURE
    # which side of a missing barrier comes first depends on the order
    assert expected in message(observed) or (name == "missing_sync" and "race in shared memory" in message(observed))
    assert "planted_bugs.cu:" in message(observed)


@pytest.mark.parametrize("name", ["overrun", "masked_overrun"])
def test_planted_overruns_are_caught_by_observation(observed: Emulation, name: str) -> None:
    error, _, _ = run_bug(observed, name)
    assert error == LAUNCH_FAILURE
    assert "outside a buffer" in message(observed)
    assert "vec.cuh:" in message(observed)


@pytest.mark.parametrize(
    ("call", "expected", "place"),
    [
        ("run_bug(emulation, 'overrun')", "AddressSanitizer: heap-buffer-overflow", "vec.cuh"),
        ("run_bug(emulation, 'masked_overrun')", "AddressSanitizer: heap-buffer-overflow", "vec.cuh"),
        ("run_bug(emulation, 'uninitialised_flag')", "not a valid value for type 'bool'", "planted_bugs.cu"),
        ("run_case(emulation, 'shared_overrun')", "out of bounds", "selftest.cu"),
        ("run_case(emulation, 'misaligned_load')", "misaligned address", "selftest.cu"),
        ("run_bug(emulation, 'none')", "", ""),
    ],
)
# tests of the build that test_sanitized.py runs on
@pytest.mark.slow
def test_sanitizers_catch_and_locate(built: None, call: str, expected: str, place: str) -> None:
    program = f"from emulation import load; from test_emulation import *; emulation = load('sanitized'); {call}"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=sanitizer_environment(),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode != 0) == bool(expected), ran.stderr
    assert expected in ran.stderr
    assert place in ran.stderr


def test_a_launch_after_a_failed_one_works(emulation: Emulation) -> None:
    assert run_case(emulation, "deadlock")[0] == LAUNCH_FAILURE
    assert run_case(emulation, "primitives")[0] == 0


def test_traffic_counts_each_byte(observed: Emulation) -> None:
    error, _, _ = run_bug(observed, "none")
    observed.check(error)
    x, sums, ticket, out = observed._buffers[-4:]
    assert (x.traffic().loaded, x.traffic().min_loads, x.traffic().max_loads, x.traffic().stored) == (4 * N, 1, 1, 0)
    assert (sums.traffic().stored, sums.traffic().loaded) == (20, 20)
    assert ticket.traffic().loaded == ticket.traffic().stored == 20
    assert (out.traffic().stored, out.traffic().loaded) == (4, 0)


def test_builds_do_not_share_state(built: None) -> None:
    # statics of inline functions are one for all libraries of a process unless told otherwise
    for name in ("plain", "observed"):
        with load(name) as emulation:
            emulation.schedule(RANDOM[0])
            emulation.check(run_bug(emulation, "none")[0])
