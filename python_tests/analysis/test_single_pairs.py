"""The sweep over single pairs: what it trains, what it keeps, how it resumes, and what it compares."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import train

from semckd_kernels.analysis import single_pairs
from semckd_kernels.training.data import Batch, DataSet
from semckd_kernels.training.run.folder import RunFolder

Runs = dict[str, RunFolder]
PAIRS = [(0, 2), (1, 0)]


@pytest.fixture(scope="module")
def swept(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> single_pairs.Plan:
    """Two pairs by the recipe of the other runs, uninterrupted."""
    out = tmp_path_factory.mktemp("sweep")
    plan = single_pairs.plan([runs["ce"], runs["kd"], runs["semckd"]], out, pairs=PAIRS)
    single_pairs.train(plan, lambda line: None)
    return plan


def test_each_pair_is_a_run_by_the_method_pair(runs: Runs, swept: single_pairs.Plan, tmp_path: Path) -> None:
    for pair in PAIRS:
        found = swept.folder(pair)
        assert found.path.name == "pair_{}_{}".format(*pair)
        expected = train(tmp_path / found.path.name, "pair", runs["teacher"].path, **{"method.pair": pair})
        assert found.config.method.pair == pair
        losses = [row["train_loss"] for row in found.metrics()]
        assert losses == [row["train_loss"] for row in expected.metrics()]


def test_table_and_files(runs: Runs, swept: single_pairs.Plan) -> None:
    result = single_pairs.result(swept)
    rows = list(csv.DictReader(io.StringIO(result.files["single_pairs.csv"].decode())))
    alone = runs["ce"].summary["accuracy"]["best"]["top1"]
    assert [(int(row["student_index"]), int(row["teacher_index"])) for row in rows] == PAIRS
    assert [(row["student_layer"], row["teacher_layer"]) for row in rows] == [
        ("stage1", "stage3"),
        ("stage2", "stage1"),
    ]
    for row, pair in zip(rows, PAIRS, strict=True):
        top1 = max(epoch["test_top1"] for epoch in swept.folder(pair).metrics())
        assert float(row["top1"]) == top1
        assert float(row["minus_student_alone"]) == pytest.approx(top1 - alone, abs=1e-12)
        assert f"{top1:.2%}" in result.summary
    compared = json.loads(result.files["single_pairs.json"])["compared"]
    assert [run["run"] for run in compared] == ["student alone", "KD", "SemCKD"]
    assert compared[0]["top1"] == alone
    assert result.files["single_pairs.png"].startswith(b"\x89PNG")


def test_finished_pairs_are_kept(runs: Runs, swept: single_pairs.Plan) -> None:
    before = [swept.folder(pair).last.stat().st_mtime_ns for pair in PAIRS]
    again = single_pairs.plan(swept.compared, swept.out, pairs=PAIRS)
    single_pairs.train(again, lambda line: pytest.fail(f"trains again: {line}"))
    assert [swept.folder(pair).last.stat().st_mtime_ns for pair in PAIRS] == before


def test_an_interrupted_pair_goes_on(
    runs: Runs, swept: single_pairs.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = single_pairs.plan(swept.compared, tmp_path / "sweep", pairs=PAIRS[:1])
    batches = DataSet.train_batches

    def end_in_the_second_epoch(self: DataSet, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        if epoch == 1:
            raise KeyboardInterrupt
        return batches(self, epoch, start_step)

    monkeypatch.setattr(DataSet, "train_batches", end_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        single_pairs.train(plan, lambda line: None)
    assert len(plan.folder(PAIRS[0]).metrics()) == 1
    monkeypatch.undo()
    first = (plan.folder(PAIRS[0]).path / "metrics.csv").read_text()
    single_pairs.train(plan, lambda line: None)
    assert (plan.folder(PAIRS[0]).path / "metrics.csv").read_text().startswith(first)
    rows, expected = plan.folder(PAIRS[0]).metrics(), swept.folder(PAIRS[0]).metrics()
    assert [(row["train_loss"], row["test_top1"]) for row in rows] == [
        (row["train_loss"], row["test_top1"]) for row in expected
    ]


def test_a_student_trained_for_longer_is_no_baseline(runs: Runs, tmp_path: Path) -> None:
    plan = single_pairs.plan([runs["ce"], runs["kd"]], tmp_path, pairs=PAIRS[:1], epochs=1)
    single_pairs.train(plan, lambda line: None)
    result = single_pairs.result(plan)
    (row,) = csv.DictReader(io.StringIO(result.files["single_pairs.csv"].decode()))
    assert row["minus_student_alone"] == ""
    assert "student alone, 2 epochs: " in result.summary
    assert "after different numbers of epochs do not compare" in result.summary


def test_bad_input_before_anything_is_written(runs: Runs, swept: single_pairs.Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="single-pairs needs a teacher: none of the runs has one"):
        single_pairs.plan([runs["ce"]], out)
    with pytest.raises(ValueError, match=r"one of 2 student layers and one of 3 teacher layers, .* got 2,0"):
        single_pairs.plan([runs["kd"]], out, pairs=[(0, 0), (2, 0)])
    with pytest.raises(ValueError, match=r"holds a run of another configuration \(recipe\): give another --out"):
        single_pairs.plan([runs["kd"]], swept.out, pairs=PAIRS, epochs=7)
    assert list(tmp_path.iterdir()) == []
