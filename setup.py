"""Builds the shared libraries with CMake and Ninja and packs them into one wheel for every torch and every Python.

CMakeLists.txt alone knows sources and flags. Environment variables: TORCH_CUDA_ARCH_LIST (as torch's),
SEMCKD_BUILD_CUDA (auto, 0 or 1), SEMCKD_TORCH_INCLUDE (torch's header folder, where it is not found by itself).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
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
        build = ROOT / "build" / "cmake"
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


setup(
    license="MIT",
    distclass=BinaryDistribution,
    # build_ext only runs where there is an extension; this one stands for CMake's libraries
    ext_modules=[Extension("semckd_kernels.lib", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    # becomes a build requirement (PEP 517) only where no torch is in reach: it is a download of gigabytes
    setup_requires=[] if torch_include() else [f"torch>={OLDEST_TORCH}"],
)
