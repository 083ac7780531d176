"""The build as its users meet it: sdist, wheel, architectures, a missing or broken nvcc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a checkout only")
INCLUDE = Path(torch.__file__).parent / "include"


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        f"-DSEMCKD_TORCH_INCLUDE={INCLUDE}",
        *options,
    ]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def build_info(folder: Path) -> dict[str, str]:
    return dict(re.findall(r'^(\w+) = "(.*)"$', (folder / "_build_info.py").read_text(), re.MULTILINE))


# the build itself is CI's installation and that of `make test`; this says what is packed
@pytest.mark.slow
def test_sdist_builds_the_wheel(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__"))
    # what an editable install leaves behind must not be packed
    (checkout / "semckd_kernels" / "lib").mkdir(exist_ok=True)
    (checkout / "semckd_kernels" / "lib" / "libstale.so").write_text("")
    hook = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", hook], cwd=checkout, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "setup.py", "csrc/ops/pair_loss.cpp", "csrc/cuda/pair_loss.cu", "LICENSE"} <= names

    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(sdist),
    ]
    # as the last option it wins: optimizing takes most of the time, and finds nothing that the sources lack
    launcher = tmp_path / "unoptimized"
    launcher.write_text('#!/bin/sh\nexec "$@" -O0\n')
    launcher.chmod(0o755)
    environment = {**os.environ, "SEMCKD_BUILD_CUDA": "0", "CMAKE_CXX_COMPILER_LAUNCHER": str(launcher)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"semckd_kernels-[\d.]+-py3-none-\w+\.whl", wheel.name)
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"semckd_kernels/{name}" for name in ("lib/libsemckd.so", "_build_info.py", "py.typed")} <= packed
    assert not [name for name in packed if "stale" in name or "emulation" in name or "tests" in name or ".cu" in name]


# a stand-in for the library, which takes long enough to build that two builds meet
STAND_IN = """
cmake_minimum_required(VERSION 3.22)
project(stand_in LANGUAGES CXX)
file(WRITE ${CMAKE_BINARY_DIR}/libsemckd.so "")
file(WRITE ${CMAKE_BINARY_DIR}/_build_info.py "")
add_custom_target(slow ALL COMMAND sleep 1)
install(FILES ${CMAKE_BINARY_DIR}/libsemckd.so DESTINATION lib)
install(FILES ${CMAKE_BINARY_DIR}/_build_info.py DESTINATION .)
"""


def checkout_of_the_stand_in(folder: Path) -> Path:
    """What setup.py needs, without the sources of the library."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "CMakeLists.txt").write_text(STAND_IN)
    (folder / "semckd_kernels").mkdir()
    (folder / "semckd_kernels" / "__init__.py").write_text("")
    return folder


def start_wheel(checkout: Path, wheels: Path) -> subprocess.Popen[str]:
    """As pip does."""
    wheels.mkdir()
    hook = f"import setuptools.build_meta as b; b.build_wheel({str(wheels)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", hook], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=checkout
    )


def finish_wheel(build: subprocess.Popen[str], wheels: Path) -> None:
    said, _ = build.communicate(timeout=600)
    assert build.returncode == 0, said[-3000:]
    (wheel,) = wheels.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"semckd_kernels/{name}" for name in ("lib/libsemckd.so", "_build_info.py", "__init__.py")} <= packed


# the build itself is CI's installation and that of `make test`
@pytest.mark.slow
def test_two_builds_of_one_tree_and_a_moved_one(tmp_path: Path) -> None:
    checkout = checkout_of_the_stand_in(tmp_path / "checkout")
    folders = [tmp_path / "first", tmp_path / "second"]
    builds = [start_wheel(checkout, wheels) for wheels in folders]
    for build, wheels in zip(builds, folders, strict=True):
        finish_wheel(build, wheels)

    moved = checkout.rename(tmp_path / "moved")
    cache = moved / "build" / "cmake" / "CMakeCache.txt"
    kept = moved / "build" / "cmake" / "kept"

    def keeps_its_folder() -> bool:
        kept.touch()
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        result = subprocess.run(command, cwd=moved, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        return kept.exists()

    assert str(checkout) in cache.read_text()
    assert not keeps_its_folder()
    assert keeps_its_folder()
    # made by another generator, and by a compiler that is gone
    for name in ("CMAKE_GENERATOR", "CMAKE_CXX_COMPILER"):
        cache.write_text(re.sub(rf"^({name}:\w+)=.*$", r"\1=/nowhere", cache.read_text(), flags=re.MULTILINE))
        assert not keeps_its_folder(), name


def test_without_nvcc_the_rest_is_built_and_it_says_so(tmp_path: Path) -> None:
    result = configure(tmp_path, CUDACXX="/bin/false")
    assert result.returncode == 0, result.stderr
    # CMake breaks its warnings into lines
    said = " ".join(result.stderr.split())
    assert said.count("building the CPU part only: no working nvcc was found") == 1
    assert build_info(tmp_path)["CUDA_MISSING"] == "no working nvcc was found when the library was built"


def test_insisting_on_cuda_without_nvcc_fails(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DSEMCKD_BUILD_CUDA=1", CUDACXX="/bin/false")
    assert result.returncode != 0
    assert "SEMCKD_BUILD_CUDA=1, but no working nvcc was found" in " ".join(result.stderr.split())


# without nvcc: the tests above
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_architectures(tmp_path: Path) -> None:
    result = configure(tmp_path / "named", "-DSEMCKD_CUDA_ARCH_LIST=8.0 9.0+PTX")
    assert result.returncode == 0, result.stderr
    assert build_info(tmp_path / "named")["CUDA_ARCHITECTURES"] == "80-real;90-real;90-virtual"
    result = configure(tmp_path / "bad", "-DSEMCKD_CUDA_ARCH_LIST=Hopper")
    assert result.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST: 'Hopper' is not of the form 9.0 or 9.0+PTX" in " ".join(result.stderr.split())


def test_without_torch_headers(tmp_path: Path) -> None:
    result = configure(tmp_path, f"-DSEMCKD_TORCH_INCLUDE={tmp_path}")
    assert result.returncode != 0
    assert "install torch >= 2.11" in " ".join(result.stderr.split())
