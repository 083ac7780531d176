"""One wheel, many torches: builds it once, then tests it beside each torch in a fresh virtual environment.

    python python_tests/helpers/matrix.py                 the oldest torch that is supported, and the newest
    python python_tests/helpers/matrix.py 2.11 2.13 ""    these; the empty name is the newest

Downloads gigabytes, so it runs on request (`make test-matrix`), not in CI.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "matrix"
OLDEST = "2.11"
# neither the compiler's full matrix nor the training run: what the binary interface could break
TESTS = ("test_pair_loss.py", "test_autograd.py", "test_checks.py", "test_inplace_backward.py", "test_backends.py")


def run(*command: str | Path, **options: object) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def build_wheel() -> Path:
    folder = WORK / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    assert "-py3-none-" in wheel.name, wheel.name
    return wheel


def test_beside(torch: str, wheel: Path, tests: Path) -> None:
    environment = WORK / f"torch-{torch or 'newest'}"
    python = environment / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", environment)
    wanted = f"torch=={torch}.*" if torch else "torch"
    run(python, "-m", "pip", "install", "--quiet", wanted, "numpy", "pytest", "hypothesis")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    # from a copy of the tests, so that what is imported is the wheel and not this checkout
    run(python, "-m", "semckd_kernels", cwd=tests)
    run(python, "-m", "pytest", "-q", *TESTS, cwd=tests, env={**os.environ, "PYTHONPATH": str(tests / "helpers")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="*", default=[OLDEST, ""], help="versions such as 2.11; '' is the newest")
    versions = parser.parse_args().torch
    wheel = build_wheel()
    tests = WORK / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(ROOT / "python_tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    for version in versions:
        test_beside(version, wheel, tests)
    print(f"{len(versions)} versions of torch passed with {wheel.name}")


if __name__ == "__main__":
    main()
