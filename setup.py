"""Builds the shared libraries with CMake and Ninja and packs them into one wheel for every torch and every Python.

CMakeLists.txt alone knows sources and flags. Environment variables: TORCH_CUDA_ARCH_LIST (as torch's),
SEMCKD_BUILD_CUDA (auto, 0 or 1), SEMCKD_TORCH_INCLUDE (torch's header folder, where it is not found by itself).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build"
HEADER = Path("torch/csrc/stable/accelerator.h")
OLDEST_TORCH = "2.11"


def torch_include() -> Path | None:
    """torch's header folder: named, in the build environment, or in the environment that is installed into."""
    candidates = [os.environ.get("SEMCKD_TORCH_INCLUDE")]
    if spec := importlib.util.find_spec("torch"):
        candidates += [f"{place}/include" for place in spec.submodule_search_locations or ()]
    # under build isolation the interpreter is still the target environment's, only its packages are hidden
    candidates += [f"{sysconfig.get_path(kind)}/torch/include" for kind in ("purelib", "platlib")]
    for candidate in filter(None, candidates):
        if (Path(candidate) / HEADER).is_file() and is_new_enough(Path(candidate)):
            return Path(candidate)
    return None


def is_new_enough(include: Path) -> bool:
    text = (include / "torch/headeronly/version.h").read_text()
    version = re.findall(r"^#define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", text, re.MULTILINE)
    return [int(number) for number in version] >= [int(number) for number in OLDEST_TORCH.split(".")]


@contextlib.contextmanager
def one_build_at_a_time() -> Iterator[None]:
    """Waits for other builds of this tree: setuptools stages in it, and CMake builds in it. A killed one lets go."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("semckd_kernels: waiting for another build of this tree", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def discard_foreign(build: Path) -> None:
    """Removes a build folder that CMake would refuse: made for another path or generator, or by a compiler now gone."""
    cache = build / "CMakeCache.txt"
    if not cache.is_file():
        return
    known = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(errors="replace"), re.MULTILINE))
    compilers = [known.get(f"CMAKE_{language}_COMPILER", "") for language in ("CXX", "CUDA")]
    fits = (
        known.get("CMAKE_HOME_DIRECTORY") == str(ROOT)
        and known.get("CMAKE_CACHEFILE_DIR") == str(build)
        and known.get("CMAKE_GENERATOR") == "Ninja"
        and all(Path(compiler).exists() for compiler in compilers if compiler.startswith("/"))
    )
    if not fits:
        print(f"semckd_kernels: {build} was made elsewhere or otherwise, so it is built anew", flush=True)
        shutil.rmtree(build)


class CMakeBuild(build_ext):
    def run(self) -> None:
        include = torch_include()
        if include is None:
            raise SystemExit(
                f"semckd_kernels needs the headers of torch >= {OLDEST_TORCH}: pip install 'torch>={OLDEST_TORCH}'"
            )
        ninja = shutil.which("ninja")
        if shutil.which("cmake") is None or ninja is None:
            raise SystemExit("semckd_kernels is built with cmake and ninja: pip install cmake ninja")
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "semckd_kernels"
        build = BUILD / "cmake"
        discard_foreign(build)
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "SEMCKD_TORCH_INCLUDE": include,
            "SEMCKD_BUILD_CUDA": os.environ.get("SEMCKD_BUILD_CUDA", "auto"),
            "SEMCKD_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
        }
        configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build], check=True)
        # a library that this build does not make (CUDA, say) must not be left over from an earlier one
        shutil.rmtree(package / "lib", ignore_errors=True)
        subprocess.run(["cmake", "--install", build, "--prefix", package], check=True)


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


with one_build_at_a_time():
    setup(
        license="MIT",
        distclass=BinaryDistribution,
        # build_ext only runs where there is an extension; this one stands for CMake's libraries
        ext_modules=[Extension("semckd_kernels.lib", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
        # becomes a build requirement (PEP 517) only where no torch is in reach: it is a download of gigabytes
        setup_requires=[] if torch_include() else [f"torch>={OLDEST_TORCH}"],
    )
