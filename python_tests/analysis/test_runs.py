"""Finished runs and results."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from semckd_kernels.analysis.runs import Result, csv_bytes, evaluation, finished, same_data, table, titles
from semckd_kernels.training import config
from semckd_kernels.training.run.folder import RunFolder


def test_only_finished_runs_are_taken(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no config\.json"):
        finished(tmp_path)
    shutil.copy(runs["kd"].path / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"is not finished: it has no summary\.json"):
        finished(tmp_path)
    assert finished(runs["kd"].path).config == runs["kd"].config


def test_runs_of_one_method_are_told_apart_by_their_folders(runs: dict[str, RunFolder]) -> None:
    assert titles([runs["ce"], runs["kd"], runs["semckd"]]) == ["student alone", "KD", "SemCKD"]
    assert titles([runs["teacher"], runs["ce"], runs["kd"]]) == ["student alone (teacher)", "student alone (ce)", "KD"]


def test_one_data_set(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    same_data([runs["ce"], runs["kd"]])
    other = RunFolder(tmp_path)
    other.path.joinpath("config.json").write_text(
        config.replace(runs["kd"].config, **{"data.name": "cifar100"}).to_json()
    )
    with pytest.raises(ValueError, match=r"'digits', .* has 'cifar100'"):
        same_data([runs["ce"], other])


def test_each_module_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()

    def fails() -> None:
        with evaluation(net):
            assert not any(module.training for module in net.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert [module.training for module in net.modules()] == [True, True, False]


def test_numbers_read_back_as_they_were() -> None:
    values = torch.rand(4, dtype=torch.float64).tolist()
    rows = list(csv.reader(io.StringIO(csv_bytes(("a", "b"), [("x,y", x) for x in values] + [("z", None)]).decode())))
    assert rows[0] == ["a", "b"]
    assert [float(row[1]) for row in rows[1:5]] == values
    assert rows[1][0] == "x,y"
    assert rows[5] == ["z", ""]


def test_files_are_written_over_earlier_ones(tmp_path: Path) -> None:
    result = Result("text", {"a.csv": b"new", "b.png": b"b"})
    folder = tmp_path / "deep" / "analysis"
    Result("", {"a.csv": b"of an earlier one"}).write(folder)
    assert result.write(folder) == [folder / "a.csv", folder / "b.png"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == result.files


def test_table() -> None:
    assert (
        table(["run", "x"], [["long name", "1.25"], ["b", "10"]]) == "run           x\nlong name  1.25\nb            10"
    )
