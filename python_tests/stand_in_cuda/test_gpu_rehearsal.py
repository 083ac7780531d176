"""``make gpu STEPS=measure`` from end to end on the stand-in: every command line, every row; values mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu
import pytest

from .child import run


def rehearse(folder: str) -> dict[str, int]:
    """Exit codes of the sections, called as the steps call them."""
    import gpu_measure

    steps = gpu.measuring_steps(Path(folder), small=True)
    # behind the interpreter and the script
    return {name: gpu_measure.main(list(step.command[2:])) for name, step in steps.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    codes = run(rehearse, str(folder))
    assert codes == dict.fromkeys(gpu.MEASURING_S, 0)
    return {name: json.loads((folder / f"gpu_{name}.json").read_text()) for name in gpu.MEASURING_S}


def test_no_row_has_an_error(files: dict[str, Any]) -> None:
    errors = [row for file in files.values() for row in file["rows"] if "error" in row]
    assert errors == []


def test_every_section_has_its_rows(files: dict[str, Any]) -> None:
    assert [row["kind"] for row in files["errors"]["rows"]] == ["fp32", "bf16", "fp16"]
    assert set(files["errors"]["rows"][0]["d_parameters"]) == {"ours", "plain"}
    # one batch in a rehearsal, two types, four contenders without the compiled one
    for network in ("cifar", "imagenet"):
        rows = files[network]["rows"]
        assert len(rows) == 2 * 4
        assert all({"eager_ms", "host_ms", "graph_ms", "peak_mb", "first_s"} <= set(row) for row in rows)
    assert len(files["vendor"]["rows"]) == 2 * 10
    assert len(files["profile"]["rows"]) == 3


def test_predictions_stand_beside_measurements(files: dict[str, Any]) -> None:
    for network in ("cifar", "imagenet"):
        for row in files[network]["rows"]:
            assert (row["predicted_ms"] is None) == (row["what"] == "plain NCHW")
    assert all(
        "linear_kernel" in row["predicted"]["kernels"] for row in files["profile"]["rows"] if row["what"] == "ours"
    )


def test_what_comes_back_is_small(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]) -> None:
    """The report and a file a section: at most 8 files of 16 MiB."""
    assert len(files) + 1 <= 8
    assert all(len(json.dumps(content)) < 2**20 for content in files.values())
