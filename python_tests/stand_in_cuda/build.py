"""Builds the library, and says how a process is started on it."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "stand_in_cuda"
# whether Triton's programs are compiled to the end; nobody executes them
COMPILES = os.environ.get("SEMCKD_STAND_IN_COMPILE") == "1"


class MissingTool(Exception):
    """The library cannot be built or used here; says what is missing."""


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MissingTool(f"the package {name} is not installed")
    return Path(spec.origin).parent


def _runtime() -> Path:
    """The CUDA runtime that torch loads."""
    import torch

    if torch.version.cuda is None:
        raise MissingTool(f"torch {torch.__version__} is built without CUDA")
    major = torch.version.cuda.split(".")[0]
    if major != "13":
        raise MissingTool(f"it stands in for CUDA 13, and torch {torch.__version__} is built for {torch.version.cuda}")
    found = sorted((_package("torch").parent / "nvidia").glob(f"**/libcudart.so.{major}"))
    if not found:
        raise MissingTool(f"there is no libcudart.so.{major} beside torch {torch.__version__}")
    return found[0]


@functools.cache
def build() -> Path:
    """Builds the library, or what changed since the last time; returns the folder it is in.

    Raises:
        MissingTool: a tool is missing, or torch comes without CUDA.
    """
    for tool in ("g++", "cmake", "ninja"):
        if not shutil.which(tool):
            raise MissingTool(f"{tool} is not installed")
    # triton brings CUDA's headers along
    headers = _package("triton") / "backends" / "nvidia" / "include"
    options = (
        f"-DCUDA_INCLUDE={headers}",
        f"-DCUDART={_runtime()}",
        f"-DTORCH={_package('torch')}",
        "-DCMAKE_CXX_COMPILER=g++",
    )
    BUILD.mkdir(parents=True, exist_ok=True)
    # tests run in several processes
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", *options],
            ["cmake", "--build", str(BUILD), "-j2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the stand-in CUDA runtime does not build:\n{done.stdout}{done.stderr}")
    return BUILD


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process whose CUDA is the stand-in.

    Args:
        devices: how many GPUs it shows.
    """
    folder = build()
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [
        str(ROOT),
        str(ROOT / "python_tests" / "helpers"),
        str(ROOT / "python_tests"),
        os.environ.get("PYTHONPATH", ""),
    ]
    return {
        **inherited,
        "LD_PRELOAD": str(folder / "libcuda.so.1"),
        # where Triton's compiler of launchers looks for the driver
        "TRITON_LIBCUDA_PATH": str(folder),
        # compiled kernels are kept: they depend on the sources alone
        "TRITON_CACHE_DIR": str(folder / ("compiled" if COMPILES else "not_compiled")),
        "STAND_IN_CUDA_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
    }
