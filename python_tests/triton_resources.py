"""What the compilers made of the Triton kernels, without a GPU.

``python python_tests/triton_resources.py`` prints a table of registers, spills, shared memory and 128-bit accesses for
NVIDIA (sm_80, sm_90, sm_100) and AMD (gfx90a, gfx942, gfx1100); ``--json`` prints the same for
``test_triton_compiles.py``. Needs the triton package, which brings its own assembler and disassembler.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx1100")
TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float64, torch.float64),
]


def compile_all(arch: str, s_dtype: torch.dtype, t_dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row for each kernel variant that two types of maps need."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semckd_kernels._triton.config import warp_size
    from semckd_kernels._triton.offline import variants

    amd = arch.startswith("gfx")
    target = GPUTarget("hip" if amd else "cuda", arch if amd else int(arch[3:]), warp_size(arch))
    rows = []
    for v in variants(s_dtype, t_dtype, arch):
        source = ASTSource(fn=v.kernel, signature=v.signature, constexprs=v.constexprs, attrs=v.attrs)
        compiled = triton.compile(source, target=target, options=v.options)
        row = {"arch": arch, "s": str(s_dtype)[6:], "t": str(t_dtype)[6:], "kernel": v.name}
        row |= _read_amdgcn(compiled.asm["amdgcn"]) if amd else _read_cubin(compiled.asm["cubin"])
        rows.append({**row, "shared": compiled.metadata.shared})
    return rows


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _read_cubin(cubin: bytes) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers, stack = (re.search(rf"\b{key}:(\d+)", usage) for key in ("REG", "STACK"))
    assert registers
    assert stack
    return {
        "registers": int(registers[1]),
        "spills": _count(r"\b(?:LDL|STL)\b", sass) + int(stack[1]),
        "loads_128": _count(r"\bLDG\.E\.(?:\S*\.)?128", sass),
        "stores_128": _count(r"\bSTG\.E\.(?:\S*\.)?128", sass),
    }


def _read_amdgcn(code: str) -> dict[str, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found, name
        return int(found[1])

    return {
        "registers": field("vgpr_count"),
        "spills": field("vgpr_spill_count") + field("sgpr_spill_count"),
        "loads_128": _count(r"(?:global|buffer)_load_(?:dwordx4|b128)", code),
        "stores_128": _count(r"(?:global|buffer)_store_(?:dwordx4|b128)", code),
    }


def table(archs: tuple[str, ...] = ARCHS) -> list[dict[str, Any]]:
    # the interpreter compiles nothing; triton reads this when it is imported, in the processes started below
    os.environ["TRITON_INTERPRET"] = "0"
    jobs = [(arch, s_dtype, t_dtype) for arch in archs for s_dtype, t_dtype in TYPES]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1, 8)) as pool:
        return [row for rows in pool.map(compile_all, *zip(*jobs, strict=True)) for row in rows]


if __name__ == "__main__":
    rows = table()
    if "--json" in sys.argv:
        print(json.dumps(rows))
    else:
        widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
        print("  ".join(key.ljust(width) for key, width in widths.items()))
        for row in rows:
            print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
