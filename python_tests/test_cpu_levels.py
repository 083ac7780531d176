"""The CPU kernels at every instruction set this processor has, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semckd_kernels as sk
from semckd_kernels.backends import CPU_LEVELS

HERE = Path(__file__).parent


def available_levels() -> list[str]:
    best = torch.ops.semckd_cpu.isa() if sk.available_backends()["cpu"].available else "base"
    return list(CPU_LEVELS[: CPU_LEVELS.index(best) + 1])


@pytest.mark.parametrize("level", available_levels())
def test_level(level: str) -> None:
    check = """
import torch, semckd_kernels, pytest, sys
assert torch.ops.semckd_cpu.isa() == sys.argv[1], torch.ops.semckd_cpu.isa()
# what a level's loops see: not layouts, which are packed before, nor what is above the kernels
chosen = "cpu and not layouts and not gradcheck and not graph and not asked and not empty"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", chosen, "test_pair_loss.py"]))
"""
    environment = {**os.environ, "SEMCKD_CPU_LEVEL": level, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-c", check, level]
    result = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("level", available_levels())
def test_every_half_precision_value(level: str) -> None:
    """Conversions are written by hand where there is no instruction: all 2^16 patterns, and rounding to both types."""
    check = """
import torch, semckd_kernels
zero = torch.zeros(1, 2**16)
d_loss, weight, mse = torch.tensor(1.0), torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
for dtype in (torch.float16, torch.bfloat16):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, -1)
    # gradient = 2/N * value: an exact power of two
    (_,), (d_t,), _ = torch.ops.semckd.pair_loss_backward(d_loss, [every], [zero], weight, mse, False, True, True)
    torch.testing.assert_close(d_t * -(2.0**15), every.float(), rtol=0, atol=0, equal_nan=True)
    # rounding: values between neighbours, halfway cases, subnormals, overflow, NaN
    spread = torch.cat([every.float() * f for f in (1, 1 + 2**-9, 1 + 2**-8, 1 - 2**-12, 1 + 2**-11, 1.5)], 1)
    n = spread.shape[1]
    target = torch.zeros(1, n, dtype=dtype)
    d_mse = torch.full((1, 1), -n / 2.0)
    _, (d_t,) = torch.ops.semckd.pair_mse_backward(d_mse, [spread], [target], False, True)
    torch.testing.assert_close(d_t, spread.to(dtype), rtol=0, atol=0, equal_nan=True)
"""
    environment = {**os.environ, "SEMCKD_CPU_LEVEL": level}
    result = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_same_bits_for_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    s = [torch.randn(5, n, generator=generator) for n in (70000, 8193, 33)]
    t = [torch.randn(x.shape, generator=generator) for x in s]
    weight = torch.rand(5, 1, 3, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.ops.semckd.pair_loss(s, t, weight, True))
    finally:
        torch.set_num_threads(before)
    for loss, mse in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(mse, results[0][1])
