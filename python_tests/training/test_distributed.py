"""Two processes on the CPU, by torchrun: equal parameters, and the training of one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import training_nets
import training_worker
from training_files import write_image_folders

from semckd_kernels.training import distributed
from semckd_kernels.training.distributed import Ranks
from semckd_kernels.training.loop.evaluation import evaluate
from semckd_kernels.training.loop.step import make_autocast
from semckd_kernels.training.run.folder import RunFolder


class Finished(NamedTuple):
    root: Path
    ranks: list[dict[str, Any]]
    output: str
    errors: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """All scenarios of ``training_worker``, in one start of two processes, and one more after one is killed."""
    root = tmp_path_factory.mktemp("runs")
    assert training_nets.train(root / "teacher", "--epochs", "1", student="wide") == 0
    broken = write_image_folders(root / "images") / "train" / "n00000001" / "3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    here = Path(training_worker.__file__)
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # a free port of this machine
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, "--max-restarts", "1", str(here), str(root)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(root / f"rank{n}.pt", weights_only=True) for n in (0, 1)]
    return Finished(root, ranks, result.stdout, result.stderr)


@pytest.mark.parametrize("name", ["alone", "accumulated"])
def test_parameters_are_equal_on_both_ranks(name: str, finished: Finished) -> None:
    states = [rank[name]["state"] for rank in finished.ranks]
    assert training_nets.differences(*states) == []


@pytest.mark.parametrize(
    ("name", "run"), [("alone", training_worker.alone), ("accumulated", training_worker.accumulating)]
)
def test_training_is_that_of_one_process_with_the_global_batch(
    name: str, run: Any, finished: Finished, tmp_path: Path
) -> None:
    one, _ = training_worker.full_steps(run(1), tmp_path / "run")
    fresh = training_nets.make_trainer(tmp_path / "fresh", run(1)).distiller.state_dict()
    for key, value in one.distiller.state_dict().items():
        two = finished.ranks[0][name]["state"][key]
        moved = (value - fresh[key]).norm()
        assert moved > 0
        assert (two - value).norm() <= 1e-5 * moved, key


def test_metrics_are_sums_over_ranks(finished: Finished) -> None:
    row = RunFolder(finished.root / "alone").metrics()[0]
    sums = [rank["alone"]["sums"] for rank in finished.ranks]
    images = sum(s["images"] for s in sums)
    assert images == 22 * 64
    # loss, cross-entropy, hits
    total = sum(s["values"] for s in sums) / images
    assert [row["train_loss"], row["train_ce"], row["train_top1"]] == total.tolist()
    assert not torch.equal(sums[0]["values"], sums[1]["values"])


def test_every_test_image_counts_once(finished: Finished) -> None:
    run = RunFolder(finished.root / "alone").load()
    found = evaluate(run.student, run.data.test_batches(), make_autocast(run.config.hardware))
    row = RunFolder(finished.root / "alone").metrics()[0]
    assert found is not None
    assert (row["test_top1"], row["test_top5"]) == (found.top1, found.top5)
    assert row["test_loss"] == pytest.approx(found.loss, rel=1e-6)


def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on_bit_for_bit(finished: Finished) -> None:
    for rank in finished.ranks:
        assert [rank[name] for name in ("whole", "stopped", "resumed")] == [0, 143, 0]
    # of the second signal check, where the ranks talk to each other: step 8 of 15
    assert "stopped at epoch 1, step 8 of 15" in finished.errors
    training_nets.same_run(finished.root / "whole", finished.root / "stopped")
    state = training_nets.state(finished.root / "whole")
    generators = [rank["rng"]["cpu"] for rank in state["ranks"]]
    # ranks draw different random numbers
    assert not torch.equal(*generators)


def test_several_seeds_one_after_the_other(finished: Finished) -> None:
    assert [rank["seeds"] for rank in finished.ranks] == [0, 0]
    runs = [RunFolder(finished.root / "seeds" / f"seed-{seed}") for seed in (0, 1)]
    assert [run.config.recipe.seed for run in runs if run.is_finished] == [0, 1]
    assert finished.output.count("RUN...` compares it with others") == 1


def test_different_checkpoints_stop_both(finished: Finished) -> None:
    assert [rank["torn"] for rank in finished.ranks] == [2, 2]
    assert finished.errors.count("process 0 epoch 1, step 8, process 1 no checkpoint; all of them must see") == 1


def test_bad_input_stops_both(finished: Finished) -> None:
    assert [rank["bad"] for rank in finished.ranks] == [2, 2]
    assert finished.errors.count("the network has no module 'c'") == 1
    assert not (finished.root / "bad").exists()


def test_an_image_that_one_rank_cannot_decode_stops_both_with_a_checkpoint(finished: Finished) -> None:
    assert [rank["images"] for rank in finished.ranks] == [1, 1]
    expected = (
        r"image '.+/train/n00000001/3.JPEG' cannot be decoded: .+ holds everything up to epoch 1, step 3 of 3: --re"
    )
    assert len(re.findall(expected, finished.errors)) == 1
    state = training_nets.state(finished.root / "images_run")
    assert (state["epoch"], state["step"]) == (0, 3)


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(finished: Finished) -> None:
    assert [rank["broken"] for rank in finished.ranks] == [1, 1]
    # the gradients have carried it into the next step of the other
    expected = "at epoch 1, step 8 of 12 (batch 8 of the epoch of process 1, 64 images): the term 'ce' is nan"
    assert finished.errors.count(expected) == finished.errors.count("is not finite") == 1


def test_a_killed_process_is_replaced_and_the_run_ends_as_if_nothing_had_happened(finished: Finished) -> None:
    assert [rank["replaced"] for rank in finished.ranks] == [0, 0]
    # of the survivor
    expected = (
        r"semckd train: process 0 of 2 has lost another process \(connection [\w ]+\): --resume continues from '.+'"
    )
    assert re.search(expected, finished.errors)
    assert finished.errors.count("Traceback") == 0
    assert "in epoch 2, after step 3" in finished.output
    training_nets.same_run(finished.root / "whole", finished.root / "replaced")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "has WORLD_SIZE=2 but no RANK: start the processes by torchrun, which sets both, or unset",
        ),
        ({"RANK": "0"}, "has RANK=0 but no WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number of at least 1, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1, got '0'"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK must be a whole number of at least 0, got '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be from 0 to WORLD_SIZE - 1 = 1, got 2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "has WORLD_SIZE=2 but no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost"}, "has WORLD_SIZE=2 but no MASTER_PORT"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
            "MASTER_PORT must be a whole",
        ),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0.5"}, "LOCAL_RANK must be a whole number"),
    ],
)
def test_half_an_environment_of_torchrun(
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert training_nets.train(tmp_path / "run", "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": ""}])
def test_one_process(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.connect("cpu") == Ranks()


def test_only_errors_of_connections_are_those_of_a_lost_process() -> None:
    for world_size, error in ((2, "shapes do not match"), (1, "Connection reset by peer")):
        with pytest.raises(RuntimeError, match=error) as caught, distributed.together(Ranks(0, 0, world_size)):
            raise RuntimeError(error)
        assert not isinstance(caught.value, distributed.LostPeer)
