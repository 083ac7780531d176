"""The mismatch of finished runs: weights of each kind, a borrowed teacher, files that agree with each other."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import matplotlib.image
import pytest
import torch

from semckd_kernels.analysis.mismatch import by_position, measure
from semckd_kernels.analysis.mismatch_runs import analyze
from semckd_kernels.training.run.folder import RunFolder

Runs = dict[str, RunFolder]


def scores(result: Any) -> dict[str, float]:
    return {run["run"]: run["score"] for run in json.loads(result.files["mismatch.json"])["runs"]}


def test_each_run_is_weighted_by_what_it_was_trained_with(runs: Runs) -> None:
    found = scores(analyze([runs[name] for name in ("ce", "kd", "semckd", "pair")]))
    assert list(found) == ["student alone", "KD", "SemCKD", "one pair"]
    loaded = {name: runs[name].load() for name in ("ce", "kd", "semckd", "pair")}
    teacher = loaded["kd"].teacher

    def expected(name: str, weight: Any) -> float:
        with torch.no_grad():
            batches = []
            for images, _ in loaded[name].data.test_batches():
                maps = loaded[name].student(images).maps, teacher(images).maps
                batches.append((*maps, weight(*maps) if callable(weight) else weight))
        return measure(batches).score

    # the student alone has no teacher of its own
    assert found["student alone"] == pytest.approx(expected("ce", by_position(2, 3)))
    assert found["KD"] == pytest.approx(expected("kd", by_position(2, 3)))
    criterion = loaded["semckd"].criterion.semckd
    assert found["SemCKD"] == pytest.approx(expected("semckd", lambda s, t: criterion(s, t).weight))
    one_hot = torch.zeros(2, 3)
    one_hot[1, 2] = 1.0
    assert found["one pair"] == pytest.approx(expected("pair", one_hot))


def test_files_hold_what_is_drawn(runs: Runs) -> None:
    result = analyze([runs["kd"], runs["semckd"]], distance="l1", kind="cosine", weighting="uniform")
    values = json.loads(result.files["mismatch.json"])
    assert (values["distance"], values["similarity"]) == ("l1", "cosine")
    assert "no code was published" in values["note"]
    rows = list(csv.DictReader(io.StringIO(result.files["mismatch.csv"].decode())))
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        run = next(run for run in values["runs"] if run["run"] == row["run"])
        i, j = (
            ("stage1", "stage2").index(row["student_layer"]),
            ("stage1", "stage2", "stage3").index(row["teacher_layer"]),
        )
        assert float(row["distance"]) == run["distance"][i][j]
        assert float(row["weight"]) == run["weight"][i][j] == pytest.approx(1 / 3)
        assert float(row["score"]) == run["score"]
        assert f"{run['score']:.4f}" in result.summary
    assert matplotlib.image.imread(io.BytesIO(result.files["mismatch.png"])).shape[2] == 4


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["ce"], {}, "needs a teacher: none of the runs has one"),
        (["kd"], {"weighting": "attention"}, "trained with method 'kd', which has no attention to weigh with"),
        (["kd"], {"weighting": "guess"}, "weights must be one of auto, attention, position, uniform, got 'guess'"),
        (["kd"], {"distance": "l3"}, "distance must be one of frobenius, l1, got 'l3'"),
        (["kd"], {"kind": "rbf"}, "similarity must be one of gram, cosine, got 'rbf'"),
    ],
)
def test_bad_input(runs: Runs, names: list[str], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze([runs[name] for name in names], **options)
