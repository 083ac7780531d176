"""Prints a table of all GPU kernels: ``python -m python_tests.resources [--write-budget]``.

Triton kernels are compiled in a process of their own, since Triton may be set to interpret in this one.
``--write-budget`` makes what the CUDA kernels need now their budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from . import cuda

TRITON_SCRIPT = Path(__file__).parents[1] / "helpers" / "triton_resources.py"
Row = dict[str, object]


def cuda_row(kernel: cuda.Kernel) -> Row:
    code = kernel.code
    return {
        "arch": kernel.arch,
        "kernel": f"cuda {kernel.name}",
        "registers": code.registers,
        "spills": kernel.spill_bytes,
        "stack": code.stack,
        "shared": code.shared,
        "loads": f"{code.loads_128} + {code.loads_narrow}",
        "stores": f"{code.stores_128} + {code.stores_narrow}",
        "tensor": code.tensor,
        "occupancy": f"{kernel.occupancy:.0%}",
    }


def triton_rows() -> list[Row]:
    """The rows of the Triton kernels, in this table's columns where both have them."""
    done = subprocess.run([sys.executable, str(TRITON_SCRIPT), "--json"], capture_output=True, text=True)
    if done.returncode:
        print(f"Triton kernels left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    short = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return [
        {
            "arch": row["arch"],
            "kernel": f"triton {row['kernel']}<{short[row['s']]}, {short[row['t']]}>",
            "registers": row["registers"],
            "spills": row["spills"],
            "shared": row["shared"],
            "loads": row["loads_128"],
            "stores": row["stores_128"],
        }
        for row in json.loads(done.stdout)
    ]


def print_table(rows: list[Row]) -> None:
    widths = {key: max(len(key), *(len(str(row.get(key, ""))) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()).rstrip())
    for row in rows:
        print("  ".join(str(row.get(key, "")).ljust(width) for key, width in widths.items()).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m python_tests.resources", description=__doc__)
    parser.add_argument("--write-budget", action="store_true", help="store what the CUDA kernels need now")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if reason := cuda.why_not():
        print(f"CUDA kernels left out: {reason}", file=sys.stderr)
    else:
        kernels = cuda.compile_all()
        rows += [cuda_row(kernel) for kernel in kernels]
        if arguments.write_budget:
            cuda.write_budget(kernels)
    rows += triton_rows()
    if rows:
        print("loads, stores: of 16 bytes + narrower; spills: bytes (AMD: registers)\n")
        print_table(rows)


if __name__ == "__main__":
    main()
