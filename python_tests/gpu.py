"""One command for a machine with a CUDA GPU: measure, build, test, sanitize, keep what was found.

    python python_tests/gpu.py measure              first, under 6 minutes: errors, times, profiles; needs no build
    python python_tests/gpu.py check                then, under 6 minutes: builds, runs the GPU tests, sanitizers last
    python python_tests/gpu.py                      both
    python python_tests/gpu.py tests bench          these steps
    python python_tests/gpu.py --dry-run            the same steps, small and on the CPU: shows that the logic works

Each step runs in a process of its own with a time limit. The report is rewritten after every step, so one that fails,
hangs or is interrupted loses nothing but itself. All files are in one folder, ``$OUT`` where that is set: the report,
and one of each section of gpu_measure.py. No network is needed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


# limits of the sections of gpu_measure.py, and what a process needs before and after
MEASURING_S = {"errors": 60, "cifar": 90, "profile": 45, "vendor": 40, "imagenet": 95}
STARTING_S = 15
# what is asked for in one call on a machine that is at hand for minutes
CALLS = {
    "measure": ("report", *MEASURING_S),
    "check": ("build", "tests", "memcheck", "racecheck"),
}
CALL_LIMIT_S = 6 * 60


@dataclass(frozen=True)
class Step:
    """A command, how long it may take, and what it needs."""

    command: Sequence[str]
    limit_s: int
    environment: dict[str, str] = field(default_factory=dict)
    # a program that must be installed; where it is not, the step is skipped, which the report says
    needs: str | None = None


@dataclass
class Outcome:
    """What became of a step."""

    step: str
    result: str  # passed, failed, timed out, skipped
    seconds: float
    output: str  # the last lines


def measuring_steps(out: Path, small: bool = False) -> dict[str, Step]:
    """The sections of gpu_measure.py; each gets seconds less than its limit, and stops by itself."""
    return {
        section: Step(
            (
                *(sys.executable, "python_tests/gpu_measure.py", section, *(("--small",) if small else ())),
                *("--out", str(out / f"gpu_{section}.json"), "--seconds", str(limit_s - STARTING_S)),
            ),
            limit_s,
        )
        for section, limit_s in MEASURING_S.items()
    }


def gpu_steps(out: Path) -> dict[str, Step]:
    required = {"SEMCKD_REQUIRE": "cuda,triton"}
    # emulation, offline compilation, the stand-in runtime and most of the training need no GPU; CI runs them
    own = ("test_on_gpu.py", "test_criterion_on_gpu.py", "training/test_training_on_gpu.py")
    others = (p.name for p in sorted(Path(__file__).parent.glob("test_*.py")) if p.name not in own)
    # the most telling first, in parallel where that is installed
    on_gpu = (*(f"python_tests/{name}" for name in (*own, *others)), "python_tests/training/data")
    processes = min(8, os.cpu_count() or 1)
    parallel = (f"--numprocesses={processes}", "--dist=worksteal") if importlib.util.find_spec("xdist") else ()
    tests = (*PYTEST, *parallel, "--maxfail=50", *on_gpu, "--deselect=python_tests/test_triton_compiles.py")
    small = ("python_tests/test_pair_loss.py", "-k", "cuda and (test_types or test_odd_sizes or test_many_pairs)")
    sanitizer = ("compute-sanitizer", "--error-exitcode=9", "--target-processes=all")
    install = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")
    return {
        "report": Step((sys.executable, "-m", "semckd_kernels"), 20),
        **measuring_steps(out),
        "build": Step(install, 80, {"SEMCKD_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": _own_architecture()}),
        "tests": Step(tests, 190, required),
        "memcheck": Step((*sanitizer, "--tool=memcheck", *PYTEST, *small), 40, required, "compute-sanitizer"),
        "racecheck": Step((*sanitizer, "--tool=racecheck", *PYTEST, *small), 40, required, "compute-sanitizer"),
        "bench": Step((*PYTEST, "bench", "--full", "--store"), 450),
    }


def dry_steps(out: Path) -> dict[str, Step]:
    """The same steps, as far as a machine without a GPU can take them, in seconds."""
    quick = (*PYTEST, "python_tests/test_layout.py")
    help_of = (sys.executable, "python_tests/gpu_measure.py", "--help")
    return {
        "report": Step((sys.executable, "-m", "semckd_kernels"), 60),
        **{section: Step(help_of, 60) for section in MEASURING_S},
        "build": Step(("cmake", "--version"), 30),
        "tests": Step(quick, 60),
        "memcheck": Step(("compute-sanitizer", *quick), 60, needs="compute-sanitizer"),
        "racecheck": Step(("compute-sanitizer", *quick), 60, needs="compute-sanitizer"),
        "bench": Step((*PYTEST, "bench", "-k", "tiny or overhead"), 120),
    }


def _own_architecture() -> str:
    """The GPU's own architecture alone: the build is then a matter of seconds."""
    command = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    try:
        capability = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        capability = []
    return capability[0] if capability else ""


def run_step(name: str, step: Step) -> Outcome:
    """Runs one step; its output goes to the terminal line by line and, shortened, into the outcome."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(name, "skipped", 0.0, f"{step.needs} is not installed")
    begin, lines = time.monotonic(), []
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    # `timeout` ends the whole process group, so that a hanging child cannot hold the pipe open
    command = ("timeout", "--kill-after=5", str(step.limit_s), *step.command)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines = [*lines[-199:], line]
        code = process.wait()
    except KeyboardInterrupt:
        # the step is in a process group of its own, where the terminal's Ctrl-C does not reach it
        process.terminate()
        process.wait()
        raise
    result = {0: "passed", 124: "timed out", 137: "timed out"}.get(code, "failed")
    return Outcome(name, result, time.monotonic() - begin, "".join(lines))


def run(names: Sequence[str], steps: dict[str, Step], path: Path) -> list[Outcome]:
    """Runs the named steps in order and keeps the report in ``path`` up to date."""
    outcomes: list[Outcome] = []
    try:
        for name in names:
            print(f"=== {name}", flush=True)
            outcomes.append(run_step(name, steps[name]))
            write(outcomes, path)
    except KeyboardInterrupt:
        print("interrupted; the report holds the steps before this one", file=sys.stderr)
    return outcomes


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"date": time.strftime("%Y-%m-%d %H:%M"), **_machine(), "steps": [asdict(o) for o in outcomes]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


# it imports torch, which takes seconds of a GPU's time
@functools.cache
def _machine() -> dict[str, str]:
    def said_by(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    return {
        "gpu": said_by("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader") or "none",
        "python": platform.python_version(),
        "torch": said_by(sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"),
        "triton": said_by(sys.executable, "-c", "import triton; print(triton.__version__)"),
        "commit": said_by("git", "describe", "--always", "--dirty"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join((*CALLS, *gpu_steps(Path())))}")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU")
    parser.add_argument("--out", type=Path, help="the report; $OUT/gpu.json or runs/gpu.json unless given")
    options = parser.parse_args(arguments)
    report = options.out or Path(os.environ.get("OUT", ROOT / "runs")) / "gpu.json"
    steps = (dry_steps if options.dry_run else gpu_steps)(report.parent)
    names = [name for given in options.steps or CALLS for name in CALLS.get(given, (given,))]
    if unknown := [name for name in names if name not in steps]:
        parser.error(f"there is no step '{unknown[0]}': steps are {', '.join((*CALLS, *steps))}")
    outcomes = run(names, steps, report)
    print(f"\n{'step':<12}{'result':<12}{'seconds':>8}")
    for outcome in outcomes:
        print(f"{outcome.step:<12}{outcome.result:<12}{outcome.seconds:>8.1f}")
    print(f"report: {report}")
    good = len(outcomes) == len(names) and all(o.result in ("passed", "skipped") for o in outcomes)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
