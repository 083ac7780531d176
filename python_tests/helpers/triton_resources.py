"""What the compilers made of the Triton kernels, without a GPU.

``python python_tests/helpers/triton_resources.py`` prints a table of registers, spills, shared memory, 128-bit accesses
and tensor-core instructions for NVIDIA (sm_80, sm_90, sm_100) and AMD (gfx90a, gfx942, gfx1100); ``--json`` prints the
same for ``test_triton_compiles.py``; ``--some`` compiles a tenth of it, what most changes touch. Needs the triton
package, which brings its own assembler and disassembler.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
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


PAIR_LOSS = [(arch, *types) for arch in ARCHS for types in TYPES]

# architecture, type and channels of the criterion's variants: what differs between them, without all combinations,
# which would take minutes. Channels are run-time values: 100 are no multiple of a vector, and have smaller tiles
CRITERION = [
    *(("sm_90", torch.bfloat16, channels) for channels in (100, 256)),
    *((arch, torch.bfloat16, 256) for arch in ("sm_80", "sm_100", "gfx942")),
    *((arch, torch.float32, 256) for arch in ("sm_90", "sm_100", "gfx942")),
]

# architecture and type of the variants of whole layers, which have run-time channels
LAYERS = [
    *(("sm_90", dtype) for dtype in (torch.bfloat16, torch.float32)),
    *((arch, torch.bfloat16) for arch in ("sm_80", "gfx942")),
]


def _is_one_of_some(job: tuple[Any, ...]) -> bool:
    """One GPU, in bf16 with whole vectors."""
    return job[0] == "sm_90" and job[1] == torch.bfloat16 and job[-1] not in (torch.float32, 100)


LAYERS_CHANNELS = 64


def _compile(
    variants: list[Any], arch: str, s_dtype: torch.dtype, t_dtype: torch.dtype, channels: int | None
) -> list[dict[str, Any]]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semckd_kernels.backends.triton.pair_loss.config import warp_size

    amd = arch.startswith("gfx")
    target = GPUTarget("hip" if amd else "cuda", arch if amd else int(arch[3:]), warp_size(arch))
    rows = []
    for v in variants:
        source = ASTSource(fn=v.kernel, signature=v.signature, constexprs=v.constexprs, attrs=v.attrs)
        compiled = triton.compile(source, target=target, options=v.options)
        row = {"arch": arch, "s": str(s_dtype)[6:], "t": str(t_dtype)[6:], "channels": channels, "kernel": v.name}
        row |= _read_amdgcn(compiled.asm["amdgcn"]) if amd else _read_cubin(compiled.asm["cubin"])
        threads = compiled.metadata.num_warps * warp_size(arch)
        rows.append({**row, "shared": compiled.metadata.shared, "threads": threads})
    return rows


def compile_pair_loss(arch: str, s_dtype: torch.dtype, t_dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row for each kernel variant that two types of maps need."""
    from semckd_kernels.backends.triton.offline.pairs import variants

    return _compile(variants(s_dtype, t_dtype, arch), arch, s_dtype, t_dtype, None)


def compile_criterion(arch: str, dtype: torch.dtype, channels: int) -> list[dict[str, Any]]:
    """One row for each kernel variant that a pair of as many channels on both sides needs."""
    from semckd_kernels.backends.triton.offline.pairs import criterion_variants

    return _compile(criterion_variants(dtype, arch, channels, channels), arch, dtype, dtype, channels)


def compile_layers(arch: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row for each kernel variant that whole layers need."""
    from semckd_kernels.backends.triton.offline.layers import layer_variants

    return _compile(layer_variants(dtype, arch, LAYERS_CHANNELS), arch, dtype, dtype, LAYERS_CHANNELS)


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _read_cubin(cubin: bytes) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True).stdout
            for tool, *options in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c", "-ndf"))
        )
    registers, stack = (re.search(rf"\b{key}:(\d+)", usage) for key in ("REG", "STACK"))
    assert registers
    assert stack
    return {
        "registers": int(registers[1]),
        "spills": _count(r"\b(?:LDL|STL)\b", sass) + int(stack[1]),
        # to registers, or past them to shared memory
        "loads_128": _count(r"\b(?:LDG\.E|LDGSTS\.E)\.(?:\S*\.)?128", sass),
        "stores_128": _count(r"\bSTG\.E\.(?:\S*\.)?128", sass),
        "tensor_core": _count(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", sass),
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
        "tensor_core": _count(r"\bv_mfma_", code),
    }


def jobs(some: bool) -> dict[Callable[..., list[dict[str, Any]]], list[tuple[Any, ...]]]:
    """What is compiled, by the function that compiles it."""
    every = {compile_pair_loss: PAIR_LOSS, compile_criterion: CRITERION, compile_layers: LAYERS}
    return {f: [job for job in of if _is_one_of_some(job) or not some] for f, of in every.items()}


def table(some: bool = False) -> list[dict[str, Any]]:
    """Rows of the pair loss, whose channels are None, of the criterion, and of whole layers."""
    # the interpreter compiles nothing; triton reads this when it is imported, in the processes started below
    os.environ["TRITON_INTERPRET"] = "0"
    calls = [(function, job) for function, of in jobs(some).items() for job in of]
    with ProcessPoolExecutor(min(len(calls), os.cpu_count() or 1, 8)) as pool:
        results = [pool.submit(function, *job) for function, job in calls]
        return [row for result in results for row in result.result()]


if __name__ == "__main__":
    rows = table("--some" in sys.argv)
    if "--json" in sys.argv:
        print(json.dumps(rows))
    else:
        widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
        print("  ".join(key.ljust(width) for key, width in widths.items()))
        for row in rows:
            print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
