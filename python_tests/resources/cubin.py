"""Reading machine code for NVIDIA GPUs with the disassemblers that the triton package brings along."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

WARP = 32
# registers are handed out to a warp in units of this many
REGISTER_UNIT = 256


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share.

    Attributes:
        registers: of 32 bits.
        shared: bytes of shared memory.
        warps: that can be resident.
        blocks: that can be resident.
        reserved: bytes of shared memory that the system takes from each block and cuobjdump does not count.
    """

    registers: int
    shared: int
    warps: int
    blocks: int
    reserved: int

    def occupancy(self, registers: int, shared: int, threads: int) -> float:
        """The part of all warps that can be resident, for blocks of that many threads."""
        warps = -(-threads // WARP)
        registers_of_block = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT * warps
        blocks = min(
            self.registers // registers_of_block,
            self.shared // max(shared + self.reserved, 1),
            self.warps // warps,
            self.blocks,
        )
        return blocks * warps / self.warps


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(registers=65536, shared=164 << 10, warps=64, blocks=32, reserved=1024),
    "sm_90": Multiprocessor(registers=65536, shared=228 << 10, warps=64, blocks=32, reserved=0),
    "sm_100": Multiprocessor(registers=65536, shared=228 << 10, warps=64, blocks=32, reserved=0),
}


@dataclass(frozen=True)
class Code:
    """One kernel's use of resources, and counts of instructions in its code.

    Attributes:
        registers: a thread.
        stack: bytes of local memory a thread, spills included.
        shared: bytes a block, without what is asked for at launch.
        loads_128: loads of 16 bytes from device memory.
        loads_narrow: all others.
        stores_128: stores of 16 bytes.
        stores_narrow: all others.
        local: accesses to local memory.
        tensor: instructions of the tensor cores.
        narrow_in_vector_code: device memory accesses below 16 bytes that come from the file of 16-byte accesses.
    """

    registers: int
    stack: int
    shared: int
    loads_128: int
    loads_narrow: int
    stores_128: int
    stores_narrow: int
    local: int
    tensor: int
    narrow_in_vector_code: int


def tools() -> Path:
    """The folder of cuobjdump and nvdisasm.

    Raises:
        ModuleNotFoundError: there is no triton package.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the triton package, whose disassembler reads cubins, is not installed")
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin"


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# an instruction with its address: predicate, operation, operands
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<operation>[A-Z][\w.]*)")
# where the instructions that follow come from, one line for each level of inlining
_ORIGIN = re.compile(r'^\s*//## File "(?P<file>[^"]*)", line \d+(?: inlined at "(?P<outer>[^"]*)")?')
_FUNCTION = re.compile(r"^\.text\.(?P<name>\S+):")


def _instructions(cubin: Path) -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Of each function: its operations, with the names of the files that they come from."""
    functions: dict[str, list[tuple[str, frozenset[str]]]] = {}
    code: list[tuple[str, frozenset[str]]] = []
    files: set[str] = set()
    in_origin = False
    for line in _run(tools() / "nvdisasm", "--print-line-info-inline", "--print-code", cubin).splitlines():
        if found := _FUNCTION.match(line):
            code = functions.setdefault(found["name"], [])
        elif found := _ORIGIN.match(line):
            if not in_origin:
                files = set()
            files |= {Path(name).name for name in (found["file"], found["outer"]) if name}
        elif found := _INSTRUCTION.match(line):
            code.append((found["operation"], frozenset(files)))
        in_origin = bool(_ORIGIN.match(line))
    return functions


def read_cubin(cubin: Path, vector_file: str = "") -> dict[str, Code]:
    """The kernels of a cubin by their mangled names.

    Args:
        cubin: the file; with line information if ``vector_file`` is given.
        vector_file: name of the source file all of whose accesses to device memory should have 16 bytes.
    """
    usage = dict(
        re.findall(r"^ Function (\S+):\n\s*(.*)$", _run(tools() / "cuobjdump", "--dump-resource-usage", cubin), re.M)
    )
    kernels = {}
    for name, code in _instructions(cubin).items():

        def count(pattern: str, code: list[tuple[str, frozenset[str]]] = code) -> int:
            return sum(bool(re.match(pattern, operation)) for operation, _ in code)

        def used(key: str, name: str = name) -> int:
            found = re.search(rf"\b{key}:(\d+)", usage[name])
            assert found, f"cuobjdump does not say {key}"
            return int(found[1])

        loads, stores = count(r"LDG?(\.|$)"), count(r"STG?(\.|$)")
        loads_128, stores_128 = count(r"LDG?\.\S*\b128"), count(r"STG?\.\S*\b128")
        kernels[name] = Code(
            registers=used("REG"),
            stack=used("STACK"),
            shared=used("SHARED"),
            loads_128=loads_128,
            loads_narrow=loads - loads_128,
            stores_128=stores_128,
            stores_narrow=stores - stores_128,
            local=count(r"(LDL|STL)(\.|$)"),
            tensor=count(r"(HMMA|HGMMA|IMMA|QMMA|DMMA|UTC\w*MMA)"),
            narrow_in_vector_code=sum(
                vector_file in files and bool(re.match(r"(LD|ST)G?(\.|$)", operation)) and "128" not in operation
                for operation, files in code
            ),
        )
    return kernels
