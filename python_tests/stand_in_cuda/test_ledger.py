"""What the criterion launches stays within its budget, and the ledger counts what it should.

``python -m python_tests.stand_in_cuda.ledger --write-budget`` stores what is launched now: a change to look at.
"""

from __future__ import annotations

from typing import Any

import pytest

from . import ledger
from .child import run
from .costs import BYTES_A_US, LEAST_US, Work
from .measure import dispatches, measure_all
from .problems import NETWORKS, TYPES
from .teachers import teachers


@pytest.fixture(scope="module")
def ledgers() -> dict[str, ledger.Ledger]:
    return {found["key"]: found for found in run(measure_all, ledger.ours())}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", TYPES)
def test_budgets_are_kept(network: str, kind: str, ledgers: dict[str, ledger.Ledger]) -> None:
    stored = ledger.stored()
    chosen = [x for x in ledgers.values() if (x["problem"]["network"], x["problem"]["kind"]) == (network, kind)]
    assert len(chosen) == (3 if kind == "bf16" else 1)
    over = [words for x in chosen for words in ledger.exceeded(x, stored["budgets"])]
    counted = ", ".join(f"{name} {stored[name]}" for name in ledger.versions())
    assert not over, f"budgets were counted with {counted}; here it is {ledger.versions()}: {'; '.join(over)}"


def test_nothing_waits_and_no_copy_is_pageable(ledgers: dict[str, ledger.Ledger]) -> None:
    for found in ledgers.values():
        assert (found["counts"]["syncs"], found["counts"]["pageable"]) == (0, 0), found["key"]


def test_a_graph_holds_what_a_step_launches(ledgers: dict[str, ledger.Ledger]) -> None:
    for network in NETWORKS:
        step, graph = (ledgers[f"ours {network} bf16 {mode}"]["counts"] for mode in ("train", "graph"))
        assert graph["launches"] == step["launches"]


def test_gradients_of_two_types_are_scaled_type_by_type(ledgers: dict[str, ledger.Ledger]) -> None:
    """Parameters' gradients are fp32, in two launches; bf16 maps' gradients take one each, and one to convert."""
    launched = {kind: ledgers[f"ours cifar {kind} train"]["stages"]["backends.__init__.scale_"] for kind in TYPES}
    assert 1 <= launched["fp32"]["launches"] <= 2
    assert 1 <= launched["bf16"]["launches"] <= 2 + 4


def test_vendor_convolutions_are_three_a_pair(ledgers: dict[str, ledger.Ledger]) -> None:
    """Forward, and two gradients."""
    for network, pairs in (("cifar", 9), ("imagenet", 16)):
        assert ledgers[f"ours {network} bf16 train"]["counts"]["convolutions"] == 3 * pairs
        assert ledgers[f"ours {network} bf16 no_grad"]["counts"]["convolutions"] == pairs


def test_compiled_kernels_are_launched_by_themselves() -> None:
    first, second = run(dispatches, {"what": "ours", "network": "cifar", "kind": "bf16", "shrink": 4})
    # what is launched twice with the same constants is compiled once
    assert 20 <= first <= 30
    assert second == 0


def test_a_prepared_teacher_launches_little() -> None:
    """Of a block's seven operations two are left, and three of a strided one: cuDNN's, and a bias of the shortcut."""
    found = run(teachers)
    assert sorted(found) == ["ResNet-32x4 bf16", "ResNet-32x4 fp32", "ResNet-34 bf16", "ResNet-34 fp32"]
    for name, counts in found.items():
        assert counts["prepared"] <= 0.4 * counts["plain"], f"{name}: {counts}"


def test_stages_add_up(ledgers: dict[str, ledger.Ledger]) -> None:
    found = ledgers["ours cifar bf16 train"]
    for name in ("launches", "triton", "vendor"):
        assert sum(row.get(name, 0) for row in found["stages"].values()) == found["counts"][name]
    device_ms = sum(row["device_us"] for row in found["stages"].values()) / 1e3
    assert device_ms == pytest.approx(found["predicted_ms"]["device"])


def test_a_count_over_its_budget_is_reported() -> None:
    counts: dict[str, Any] = dict.fromkeys(ledger.COUNTS, 3)
    found = {"key": "ours", "counts": counts}
    enough = {"ours": dict.fromkeys(ledger.COUNTS, 3)}
    assert ledger.exceeded(found, enough) == []
    counts["syncs"] = 4
    assert ledger.exceeded(found, enough) == ["ours: 4 syncs, budget 3"]
    assert len(ledger.exceeded(found, {})) == len(ledger.COUNTS)


def test_time_is_the_largest_of_three() -> None:
    assert Work(bytes=8).us == LEAST_US
    assert Work(bytes=10 * BYTES_A_US, flops=600e6, rate="16 bit").us == 10
    assert Work(bytes=BYTES_A_US, flops=7 * 300e6, rate="tf32").us == 7
