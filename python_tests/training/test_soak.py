"""Runs that are killed again and again end as the run that was left alone, bit for bit, with their reports.

``SEMCKD_SOAK=50`` makes 50 trials (``make soak``), without it there is one. A trial starts one command with
``--resume`` until it is done, and disturbs it at random moments: by SIGKILL, SIGTERM or SIGINT after a random time, by
SIGKILL right before a random change of a file, or by a second process on the same folder.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import training_nets

from semckd_kernels.cli import commands as cli
from semckd_kernels.training.run import resume
from semckd_kernels.training.run.folder import RunFolder

TRIALS = int(os.environ.get("SEMCKD_SOAK", "1"))
FLAGS = ["--epochs", "3", "--batch-size", "240", "--checkpoint-every", "2", "--log-every", "2", "--log-steps"]
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
# done, failed on the lock, stopped and saved, stopped before there was anything to save
ENDS = {0, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}


def command(out: Path, teacher: Path) -> list[str]:
    student = ["--student", "training_nets:dropout", *training_nets.LAYERS, "--device", "cpu", "--no-tensorboard"]
    method = ["--method", "semckd", "--teacher-weights", str(teacher)]
    return ["train", "--resume", *student, *method, *FLAGS, "--out", str(out)]


def start(arguments: list[str], log: Path, kill_at: int | None = None) -> int:
    """Forks a process that runs the command: everything is imported already. Returns its id.

    Args:
        arguments: of the command.
        log: gets what it prints.
        kill_at: it kills itself before its change of a file of this number, counted from 0.
    """
    if child := os.fork():
        return child
    code = 99
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if kill_at is not None:
            sys.addaudithook(Killer(kill_at, arguments[-1]))
        code = cli.main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Killer:
    """An audit hook that ends the process before its n-th change of a file in a folder."""

    def __init__(self, kill_at: int, folder: str) -> None:
        self.left, self.folder = kill_at, folder

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(values[0]).startswith(self.folder):
            return
        # flags of open: reading changes nothing
        if event == "open" and not (values[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def ended(process: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def disturb(arguments: list[str], log: Path, chance: random.Random, seconds: float) -> int:
    """Starts the command, stops it somehow, and returns its exit code."""
    kind = chance.choice(("kill", "term", "int", "change", "second"))
    if kind == "change":
        return ended(start(arguments, log, kill_at=chance.randrange(60)))
    process = start(arguments, log)
    time.sleep(chance.random() * seconds)
    if kind == "second":
        second = ended(start(arguments, log))
        # the first may have ended in the meantime, and left it to the second
        assert second in (0, 2)
    else:
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[kind]
        os.kill(process, number)
    return ended(process)


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that is left alone, and the seconds of one, the first of which pays for imports."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("first", "run"):
        begin = time.monotonic()
        assert ended(start(command(folder / name, teacher), folder / "log")) == 0
    return folder / "run", time.monotonic() - begin


# at chosen moments: test_resume.py kills and signals, test_run_mending.py has what a kill may leave, and
# test_run_ownership.py the second process
@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_soak(trial: int, whole: tuple[Path, float], teacher: Path, tmp_path: Path) -> None:
    chance, out, log = random.Random(trial), tmp_path / "run", tmp_path / "log"
    arguments = command(out, teacher)
    codes: list[int] = []
    # a run that was quicker than its disturbance is done
    while len(codes) < 6 and codes[-1:] != [0]:
        codes.append(disturb(arguments, log, chance, 0.7 * whole[1]))
    codes.append(ended(start(arguments, log)))
    said = log.read_text()
    print(f"trial {trial}: exit codes {codes}")
    assert set(codes) <= ENDS, said
    assert codes[-1] == 0, said
    assert "Traceback" not in said
    training_nets.same_run(whole[0], out)
    run = RunFolder(out)
    assert resume.lacking(run, run.config) is None
    assert resume.has_report(run)
    accuracy = RunFolder(whole[0]).summary["accuracy"]
    assert run.summary["accuracy"] == accuracy
    assert [path.name for path in out.rglob(".*")] == []
