"""``semckd analyze`` as a user meets it: what is printed and written, and bad input."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from undrawn import undrawn

from semckd_kernels.cli.commands import main
from semckd_kernels.training.run.folder import RunFolder

Runs = dict[str, RunFolder]


def paths(runs: Runs, *names: str) -> list[str]:
    return [str(runs[name].path) for name in names]


@pytest.mark.parametrize(
    ("command", "names", "files"),
    [
        (["attention", "--which", "last"], ["semckd"], ["attention.png", "attention.csv", "attention_epochs.png"]),
        (["mismatch", "--distance", "l1"], ["ce", "kd", "semckd"], ["mismatch.png", "mismatch.csv", "mismatch.json"]),
        (["gradcam", "--images", "5,3"], ["kd", "semckd"], ["gradcam.png", "gradcam.csv", "gradcam.json"]),
        (
            ["single-pairs", "--pairs", "0,0", "--epochs", "1"],
            ["semckd"],
            ["single_pairs.png", "single_pairs.csv", "single_pairs/pair_0_0/summary.json"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_writes_files_and_says_where(
    runs: Runs,
    command: list[str],
    names: list[str],
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command[0] == "gradcam":
        pytest.importorskip("captum")
    for name in names:
        shutil.copytree(runs[name].path, tmp_path / name)
    folders = [str(tmp_path / name) for name in names]
    assert main(["analyze", command[0], *folders, *command[1:]]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    written = printed.out[printed.out.rindex("Written: ") :]
    for name in files:
        path = tmp_path / names[0] / "analysis" / name
        assert path.stat().st_size > 50
        if "/" in name:
            continue
        assert str(path) in written
        # with the report of the run that they are in
        assert f'href="analysis/{name}"' in (tmp_path / names[0] / "report.html").read_text()
        if name.endswith(".png"):
            assert path.with_suffix(".svg").read_bytes().startswith(b"<?xml")
            assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")


def test_several_runs_each_have_their_attention(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs["semckd"].path, tmp_path / "again")
    out = tmp_path / "out"
    with undrawn(pictures=True):
        assert main(["analyze", "attention", *paths(runs, "semckd"), str(tmp_path / "again"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["again", "semckd"]
    assert (out / "again" / "attention.csv").read_text() == (out / "semckd" / "attention.csv").read_text()


@pytest.mark.parametrize(
    ("command", "names", "message"),
    [
        (["attention"], ["kd"], "was trained with method 'kd', which has no attention: give a run of 'semckd'"),
        (["attention"], ["semckd", "kd"], "was trained with method 'kd', which has no attention"),
        (["mismatch"], ["ce"], "mismatch needs a teacher: none of the runs has one"),
        (["mismatch", "--weights", "attention"], ["kd"], "which has no attention to weigh with"),
        (["mismatch", "--distance", "l7"], ["kd"], "argument --distance: must be one of frobenius, l1, got 'l7'"),
        (["single-pairs"], ["ce"], "single-pairs needs a teacher"),
        (["single-pairs", "--pairs", "1"], ["kd"], "argument --pairs: must be two whole numbers"),
        (["single-pairs", "--pairs", "5,0"], ["kd"], "--pairs must name one of 2 student layers"),
        (["gradcam", "--images", "360"], ["kd"], "--images must be from 0 to 359, got 360"),
        (["gradcam", "--images", "-1"], ["kd"], "argument --images: must be a whole number from 0"),
        (["gradcam", "--layer", "nowhere"], ["kd"], "--layer must be a module of the network"),
        (["gradcam", "--device", "toaster"], ["kd"], "device 'toaster' cannot be used"),
        (["attention"], ["absent"], "is not the folder of a run: it has no config.json"),
        (["attention"], ["unfinished"], "is not finished: it has no summary.json"),
        (["attention"], [], "the following arguments are required: RUN"),
        (
            ["attention", "--colour", "red"],
            ["semckd"],
            "there is no flag --colour: `semckd analyze attention --help` lists all",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(
    runs: Runs,
    command: list[str],
    names: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command[0] == "gradcam":
        pytest.importorskip("captum")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["semckd"].path / "config.json", unfinished)
    folders = [str(runs[name].path if name in runs else tmp_path / name) for name in names]
    arguments = ["analyze", command[0], *folders, *command[1:], "--out", str(tmp_path / "out")]
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("semckd")
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_an_out_that_is_a_file(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(["analyze", "attention", *paths(runs, "semckd"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_without_matplotlib(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["analyze", "attention", *paths(runs, "semckd"), "--out", str(tmp_path / "out")]) == 2
    assert 'pip install "semckd-kernels[plot]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
