"""The logic of ``make gpu``, on the CPU: no step's failure loses another's result."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest

PYTHON = sys.executable
SCRIPT = Path(gpu.__file__)


def steps() -> dict[str, gpu.Step]:
    return {
        "good": gpu.Step((PYTHON, "-c", "print('fine')"), 30),
        "bad": gpu.Step((PYTHON, "-c", "import sys; print('broken'); sys.exit(3)"), 30),
        "slow": gpu.Step((PYTHON, "-c", "import time; print('begun', flush=True); time.sleep(600)"), 4),
        "absent": gpu.Step(("no-such-program",), 30, needs="no-such-program"),
        "told": gpu.Step((PYTHON, "-c", "import os; print(os.environ['WORD'])"), 30, {"WORD": "heard"}),
    }


def test_every_step_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    begin = time.monotonic()
    outcomes = gpu.run(list(steps()), steps(), path)
    assert time.monotonic() - begin < 300
    assert [o.result for o in outcomes] == ["passed", "failed", "timed out", "skipped", "passed"]
    report = json.loads(path.read_text())
    assert [s["result"] for s in report["steps"]] == [o.result for o in outcomes]
    outputs = {s["step"]: s["output"] for s in report["steps"]}
    assert outputs["good"] == "fine\n"
    assert outputs["bad"] == "broken\n"
    assert outputs["slow"] == "begun\n"
    assert outputs["absent"] == "no-such-program is not installed"
    assert outputs["told"] == "heard\n"
    assert {"gpu", "torch", "triton", "python", "commit", "date"} <= set(report)


def test_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    code = (
        f"import signal, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu, pathlib\n"
        # a process started in the background, as CI may be, inherits that it ignores this signal
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"good = gpu.Step((sys.executable, '-c', 'pass'), 30)\n"
        f"slow = gpu.Step((sys.executable, '-c', 'import time; time.sleep(600)'), 500)\n"
        f"gpu.run(['good', 'slow'], dict(good=good, slow=slow), pathlib.Path({str(path)!r}))"
    )
    process = subprocess.Popen([PYTHON, "-c", code], stderr=subprocess.PIPE, text=True)
    while not path.exists():
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    # the step that was running is ended, too: it would hold the pipe open
    _, said = process.communicate(timeout=300)
    assert "interrupted" in said
    assert [s["step"] for s in json.loads(path.read_text())["steps"]] == ["good"]


# what a step is told and what is kept of it: the tests above
@pytest.mark.slow
def test_dry_run_of_named_steps(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [PYTHON, str(SCRIPT), "--dry-run", "--out", str(path), "report", "tests"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(path.read_text())
    assert [(s["step"], s["result"]) for s in report["steps"]] == [("report", "passed"), ("tests", "passed")]
    assert "backends" in report["steps"][0]["output"]
    assert "passed" in report["steps"][1]["output"]


def test_dry_run_has_the_steps_of_the_real_one() -> None:
    assert list(gpu.dry_steps(Path())) == list(gpu.gpu_steps(Path()))


@pytest.mark.parametrize("call", gpu.CALLS)
def test_a_call_keeps_its_limit(call: str) -> None:
    steps = gpu.gpu_steps(Path())
    assert sum(steps[name].limit_s for name in gpu.CALLS[call]) <= gpu.CALL_LIMIT_S


def test_what_needs_no_build_comes_first() -> None:
    assert "build" not in gpu.CALLS["measure"]
    assert list(gpu.CALLS) == ["measure", "check"]
    assert gpu.CALLS["check"][0] == "build"


def test_unknown_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["tets"])
    assert stopped.value.code == 2
    assert "there is no step 'tets': steps are measure, check, report, errors" in capsys.readouterr().err
