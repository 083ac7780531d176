"""Runs of earlier versions, with query MLPs before key MLPs in the criterion, resume as if nothing had changed."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_nets import resume, train

from semckd_kernels.training import checkpoint, engine, older_checkpoints
from semckd_kernels.training.run_folder import RunFolder

FLAGS = ["--epochs", "1", "--batch-size", "200", "--log-every", "4"]


def in_the_old_order(values: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as the earlier version would have written it after the same steps."""
    queries = [name for name in values["criterion"] if ".query_weight" in name]
    keys = [name for name in values["criterion"] if ".key_weight" in name]
    rest = [name for name in values["criterion"] if name not in {*queries, *keys}]
    assert queries
    assert keys
    old = {name: values["criterion"][name] for name in (*queries, *keys, *rest)}
    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def parameters(criterion: dict[str, Any]) -> list[str]:
        return [name for name in (*values["student"], *criterion) if not name.endswith(buffers)]

    before, after = parameters(old), parameters(values["criterion"])
    states = {before.index(name): values["optimizer"]["state"][n] for n, name in enumerate(after)}
    assert len(states) == len(after)
    return {**values, "criterion": old, "optimizer": {**values["optimizer"], "state": dict(sorted(states.items()))}}


def test_a_run_of_the_old_order_resumes(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ["--teacher-weights", str(teacher), "--method", "semckd"]
    assert train(tmp_path / "whole", *FLAGS, *method) == 0
    expected = checkpoint.load(RunFolder(tmp_path / "whole").last)
    add, count = engine.StepRecords.add, 0

    def stopped(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        add(self, *args)
        if count == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(engine.StepRecords, "add", stopped)
        assert train(tmp_path / "run", *FLAGS, *method) == 128 + signal.SIGTERM
    run = RunFolder(tmp_path / "run")
    values = checkpoint.load(run.last)
    old = in_the_old_order(copy.deepcopy(values))
    assert list(old["criterion"]) != list(values["criterion"])
    old.pop("format")
    checkpoint.save(run.last, old)
    assert resume(tmp_path / "run") == 0
    got = checkpoint.load(run.last)
    for name in ("student", "criterion"):
        for key, value in expected[name].items():
            assert torch.equal(got[name][key], value), key
    for n, state in expected["optimizer"]["state"].items():
        assert torch.equal(got["optimizer"]["state"][n]["momentum_buffer"], state["momentum_buffer"]), n


def state_of(*values: int) -> dict[str, Any]:
    groups = [{"lr": 0.1, "params": list(range(len(values)))}]
    return {"state": {n: {"momentum_buffer": value} for n, value in enumerate(values)}, "param_groups": groups}


def test_states_follow_names() -> None:
    found = older_checkpoints.reordered(state_of(1, 2, 3), ["q", "k", "r"], ["k", "q", "r"])
    assert found == state_of(2, 1, 3)
    # of a parameter without a state there is none
    partial = state_of(1, 2, 3)
    del partial["state"][0]
    assert older_checkpoints.reordered(partial, ["q", "k", "r"], ["k", "q", "r"])["state"] == {
        0: {"momentum_buffer": 2},
        2: {"momentum_buffer": 3},
    }


@pytest.mark.parametrize(("saved", "now"), [("abc", "abc"), ("abc", "abd"), ("ab", "abc"), ("aab", "aba")])
def test_other_names_are_left_to_the_optimizer(saved: str, now: str) -> None:
    state = state_of(1, 2, 3)
    assert older_checkpoints.reordered(state, [*saved], [*now]) is state
