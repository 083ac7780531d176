"""Every path that only a CUDA device reaches, run on the stand-in: nothing is refused, waits or copies pageable memory.

All cases share one process, and the tests that need a GPU (``*_on_gpu.py``) another one.
"""

from __future__ import annotations

from typing import Any

import pytest

from . import cases, suite
from .build import ROOT
from .child import run

GPU_TESTS = ("test_on_gpu.py", "test_criterion_on_gpu.py", "training/test_training_on_gpu.py", "training/data")
# nothing is computed there, and these need a value to be something
NEED_VALUES = {"test_runs_on_the_current_stream"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("cases"))
    result: dict[str, Any] = run(cases.all_cases, folder, devices=2)
    return result


@pytest.mark.parametrize("what", ["criteria", "pair_loss cuda", "pair_loss triton"])
def test_every_type_and_layout_eager_and_captured(what: str, found: dict[str, Any]) -> None:
    if what == "pair_loss cuda" and (reason := found["missing"].get("cuda")):
        pytest.skip(reason)
    assert len(found[what]) == (len(cases.SOME_CRITERIA) if what == "criteria" else 8)
    assert_works(found[what])


# some of them: the test above
@pytest.mark.slow
def test_criteria_in_every_type_and_layout() -> None:
    found = run(cases.criteria)
    assert len(found) == 16
    assert_works(found)


def assert_works(found: dict[str, Any]) -> None:
    """Both steps launch the same, on one device, and nothing is refused, waits or copies pageable memory."""
    for name, case in found.items():
        good = {"captures": ["begin", "ok"], "replays": 1, "syncs": 0, "pageable": 0, "refused": [], "devices": [0]}
        assert {key: case[key] for key in good} == good, name
        assert case["captured"] == case["eager"] > 0, name


def test_no_other_backend_is_missing(found: dict[str, Any]) -> None:
    assert set(found["missing"]) <= {"cuda"}


def test_everything_runs_on_the_device_of_the_maps(found: dict[str, Any]) -> None:
    """Also where another device is the current one; pairs of a captured step are on side streams of that device."""
    case = found["second_device"]
    assert case["eager"] == [1]
    assert case["captured"] == [[1, True]]
    assert case["streams"] > 1
    assert (case["captures"], case["refused"]) == (["begin", "ok"], [])


def test_a_capture_on_another_device_is_left_alone(found: dict[str, Any]) -> None:
    case = found["other_device_captures"]
    assert case["launches"] == [[0, True], [1, False]]
    assert case["refused"] == []


def test_a_capture_asks_for_no_pinned_memory(found: dict[str, Any]) -> None:
    assert found["pins_in_capture"] == 0


def test_a_loader_does_not_end_the_capture_of_a_step(found: dict[str, Any]) -> None:
    case = found["training"]
    assert case["captures"] == ["begin", "ok"]
    assert (case["refused"], case["errors"]) == ([], [])


def test_the_rest_of_a_graphed_step_is_measured(found: dict[str, Any]) -> None:
    """What is not the data's is no part's: the parts inside of the graph have no time of their own."""
    assert found["training"]["other_ms"] > 0


def test_making_a_graphed_optimizer_does_not_wait(found: dict[str, Any]) -> None:
    assert found["optimizer_waits"] == 0


def test_a_vendor_gradient_is_repeatable(found: dict[str, Any]) -> None:
    """Every weight gradient of a convolution in the criterion asks for an algorithm that adds up in a fixed order."""
    calls = found["convolutions"]
    assert len(calls) > 0
    assert all(" deterministic" in name for name in calls if "d_weight" in name)


def test_analyses(found: dict[str, Any]) -> None:
    """Each comes to its end, but for what is written of distances that are all zero."""
    drawn = dict(found["analyses"])
    code, message = drawn.pop("mismatch")
    assert code == 2
    assert "nan" in message.lower()
    assert drawn == {name: [0, ""] for name in ("attention", "gradcam", "single-pairs")}


# their code without a device: the same files' other tests; with one: the cases above
@pytest.mark.slow
def test_tests_that_need_a_gpu() -> None:
    files = [str(ROOT / "python_tests" / name) for name in GPU_TESTS]
    outcomes: dict[str, str] = run(suite.run_pytest, [*files, "-k", "gpu or cuda or pin"], devices=2)
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.startswith("failed")}
    assert not failed, "\n\n".join(f"{name} {outcome}" for name, outcome in failed.items())
    skipped = {name.split("::")[1].split("[")[0] for name, outcome in outcomes.items() if outcome.startswith("skipped")}
    assert skipped == NEED_VALUES
    assert len(outcomes) > 20
