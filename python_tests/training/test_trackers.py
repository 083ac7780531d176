"""Weights & Biases and MLflow get what the CSV files hold, without a network; a resumed run continues theirs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from training_nets import resume, signal_after, train

from semckd_kernels.training.loop import trackers
from semckd_kernels.training.run.folder import RunFolder

FLAGS = ("--batch-size", "500", "--epochs", "2", "--log-every", "1")

pytestmark = pytest.mark.usefixtures("quick_report")


def stopped_and_resumed(out: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """A run that resumes after its fourth step of six; returns what it logged, by the trackers' names."""
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 4)
        assert train(out, *FLAGS, "--tracker", tracker) == 143
    assert resume(out) == 0
    folder = RunFolder(out)
    return {
        "step/loss": [row["loss"] for row in folder.steps()],
        "epoch/test_top1": [row["test_top1"] for row in folder.metrics()],
    }


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    logged: list[tuple[int, dict[str, Any]]] = []
    log = wandb.sdk.wandb_run.Run.log

    def record(self: Any, values: dict[str, Any], step: int) -> None:
        logged.append((step, values))
        log(self, values, step=step)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", record)
    expected = stopped_and_resumed(tmp_path / "run", "wandb", monkeypatch)
    for name, values in expected.items():
        assert [row[name] for _, row in logged if name in row] == values
    assert [step for step, row in logged if "step/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [(step, row["epoch"]) for step, row in logged if "epoch/test_top1" in row] == [(3, 1), (6, 2)]
    # two files of one run
    names = [path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert len(set(names)) == 1
    assert all(list(path.glob("*.wandb")) for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    expected = stopped_and_resumed(tmp_path / "run", "mlflow", monkeypatch)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("semckd").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["recipe.batch_size"] == "500"
    for name, values in expected.items():
        assert [metric.value for metric in client.get_metric_history(found.info.run_id, name)] == values


def test_a_missing_package_is_a_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name, package in trackers.PACKAGES.items():
        assert train(tmp_path / "run", *FLAGS, "--tracker", name) == 2
        assert f'semckd train: tracker {name} is not installed: run pip install "{package}"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Broken(trackers.Tracker):
    """Fails in its second step."""

    def __init__(self, *args: Any) -> None:
        self.calls = 0

    def log(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("the server is gone\nand more")

    def close(self) -> None:
        raise AssertionError("closed after it failed")


def test_a_service_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "check", lambda name: None)
    monkeypatch.setattr(trackers, "Mlflow", Broken)
    assert train(tmp_path / "run", *FLAGS, "--tracker", "mlflow") == 0
    warning = "warning: tracker mlflow gets nothing from here on: the server is gone\n"
    assert capsys.readouterr().out.count(warning) == 1

    def refuse(*args: Any) -> None:
        raise PermissionError("no account")

    monkeypatch.setattr(trackers, "WeightsAndBiases", refuse)
    assert train(tmp_path / "other", *FLAGS, "--tracker", "wandb") == 1
    message = "semckd train: tracker wandb does not start: no account; WANDB_MODE=offline keeps its files here\n"
    assert capsys.readouterr().err == message
