"""``make gpu`` from end to end on the stand-in: every command line, every row; values mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest

from .build import BUILD, ROOT, environment
from .child import run

# the logic of the steps alone: test_gpu_command.py; what they measure: test_ledger.py
pytestmark = pytest.mark.slow


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


# programs of a machine with a GPU: what they are asked for here, and the sanitizer's own options dropped
PROGRAMS = {
    "nvidia-smi": "echo 9.0",
    "compute-sanitizer": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
}
# of the step's files, which are all collected
CHOSEN = "test_does_not_wait_for_the_device or test_repeats_bitwise"


def test_check(tmp_path: Path) -> None:
    """The second call: the installer's command without the installation, a few of the tests, the sanitizers' choice."""
    if not (BUILD / "libsemckd_cuda.so").exists():
        pytest.skip("nvcc is not installed")
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    report = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "python_tests/gpu.py", "check", "--out", str(report)],
        cwd=ROOT,
        env={
            **environment(),
            "PATH": os.pathsep.join((str(tmp_path), os.environ["PATH"])),
            "PIP_DRY_RUN": "1",
            "PYTEST_ADDOPTS": f"-p {__package__}.plugin -k '{CHOSEN}'",
        },
        capture_output=True,
        text=True,
    )
    content = json.loads(report.read_text())
    outputs = {step["step"]: step["output"] for step in content["steps"]}
    assert {step["step"]: step["result"] for step in content["steps"]} == dict.fromkeys(gpu.CALLS["check"], "passed"), (
        f"{done.stdout[-6000:]}{done.stderr[-2000:]}"
    )
    assert "Would install semckd" in outputs["build"]
    for name in ("tests", "memcheck", "racecheck"):
        assert " passed" in outputs[name], outputs[name]
    assert content["gpu"] == "9.0"
