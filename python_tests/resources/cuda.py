"""The CUDA kernels, compiled for the architectures that budgets are kept for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .cubin import MULTIPROCESSORS, Code, read_cubin, tools

CSRC = Path(__file__).parents[2] / "csrc" / "cuda"
SOURCES = ("pair_loss.cu",)
BUDGET = Path(__file__).parent / "budget.json"
VECTOR_FILE = "vec.cuh"
TYPE_NAMES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "double": "fp64"}


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        arch: ``"sm_90"``.
        name: ``"pair_loss_fwd<bf16, fp32>"``.
        spill_bytes: stored and loaded, as the assembler reports them.
        threads: a block.
        code: what the machine code says.
    """

    arch: str
    name: str
    spill_bytes: int
    threads: int
    code: Code

    @property
    def occupancy(self) -> float:
        return MULTIPROCESSORS[self.arch].occupancy(self.code.registers, self.code.shared, self.threads)


def why_not() -> str | None:
    """Why the kernels cannot be compiled and read here; None where they can."""
    if not shutil.which("nvcc"):
        return "nvcc is not on the PATH"
    try:
        folder = tools()
    except ModuleNotFoundError as missing:
        return str(missing)
    if not (folder / "nvdisasm").exists():
        return "this triton package has no NVIDIA disassembler"
    return None


def compiler_version() -> str:
    """``"13.0"``."""
    banner = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", banner)
    return found[1] if found else "unknown"


def _demangle(name: str) -> str:
    """``pair_loss_fwd_kernel<float, __half>(...)`` to ``pair_loss_fwd<fp32, fp16>``."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+)_kernel<([^<>]*)>", text)
    if not found:
        return text.strip()
    types = ", ".join(TYPE_NAMES.get(argument, argument) for argument in found[2].split(", "))
    return f"{found[1]}<{types}>"


def _threads(source: Path) -> int:
    found = re.search(r"constexpr int kThreads = (\d+);", source.read_text())
    assert found, f"{source.name} does not define kThreads"
    return int(found[1])


def compile_kernels(source_name: str, arch: str) -> list[Kernel]:
    """Compiles one file as the wheel does, line information included."""
    source = CSRC / source_name
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        options = [f"-I{CSRC.parent}", "-std=c++17", "-O3", "-lineinfo", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
        done = subprocess.run(["nvcc", *options, str(source), "-o", str(cubin)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source_name} does not compile for {arch}:\n{done.stderr}")
        codes = read_cubin(cubin, VECTOR_FILE)
    spills = {
        name: int(stores) + int(loads)
        for name, stores, loads in re.findall(
            r"Function properties for (\S+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
        )
    }
    kernels = [Kernel(arch, _demangle(name), spills[name], _threads(source), code) for name, code in codes.items()]
    return sorted(kernels, key=lambda kernel: kernel.name)


def compile_all() -> list[Kernel]:
    """All kernels for all architectures."""
    jobs = [(source, arch) for source in SOURCES for arch in MULTIPROCESSORS]
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(lambda job: compile_kernels(*job), jobs) for kernel in kernels]


def write_budget(kernels: list[Kernel]) -> None:
    """Makes what the kernels need now their budget. Registers are rounded up to the 8 in which they are handed out."""
    budget: dict[str, dict[str, int]] = {}
    for kernel in kernels:
        registers = -(-kernel.code.registers // 8) * 8
        budget.setdefault(kernel.name, {})[kernel.arch] = registers
    stored = {"nvcc": compiler_version(), "registers": budget}
    BUDGET.write_text(json.dumps(stored, indent=2) + "\n")
