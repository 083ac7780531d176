"""The analyses at the end of the demo, on runs that train in a second."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from undrawn import undrawn

from semckd_kernels.analysis import overview as demo
from semckd_kernels.training.run.folder import RunFolder


@pytest.mark.parametrize("captum", [True, False])
def test_every_analysis_leaves_its_files(
    runs: dict[str, RunFolder], captum: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if captum:
        pytest.importorskip("captum")
    else:
        monkeypatch.setattr(demo, "captum_is_installed", lambda: False)
    shutil.copytree(runs["semckd"].path, tmp_path / "semckd")
    folders = [runs["ce"], runs["kd"], RunFolder(tmp_path / "semckd")]
    said: list[str] = []
    # what the pictures show is the analyses' own tests'
    with undrawn(pictures=True):
        out = demo.run(folders, quick=True, device="cpu", say=said.append)
    assert out == tmp_path / "semckd" / "analysis"
    expected = {"attention.png", "attention_epochs.png", "mismatch.png", "single_pairs.png"}
    expected |= {"gradcam.png"} if captum else set()
    assert {path.name for path in out.glob("*.png")} == expected
    assert any("Grad-CAM needs captum" in line for line in said) is not captum
    # its own student alone, trained for as long as the pairs
    alone = RunFolder(out / "single_pairs" / "student")
    assert alone.summary["counts"]["epochs"] == 1
    rows = list(csv.DictReader(io.StringIO((out / "single_pairs.csv").read_text())))
    assert [(row["student_index"], row["teacher_index"]) for row in rows] == [("0", "0"), ("1", "2")]
    top1 = alone.summary["accuracy"]["best"]["top1"]
    for row in rows:
        assert float(row["minus_student_alone"]) == pytest.approx(float(row["top1"]) - top1, abs=1e-12)
