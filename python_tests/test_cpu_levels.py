"""The CPU kernels at every instruction set this processor has, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import at_level
import pytest
import torch

import semckd_kernels as sk
from semckd_kernels.backends import CPU_LEVELS

# their kernels are compiled for each instruction set
FILES = (
    "test_pair_loss.py",
    "test_cpu_stages.py",
    "test_winograd.py",
    "test_frozen_convolution.py",
    Path(__file__).name,
)


def available_levels() -> list[str]:
    best = torch.ops.semckd_cpu.isa() if sk.available_backends()["cpu"].available else "base"
    return list(CPU_LEVELS[: CPU_LEVELS.index(best) + 1])


# the same templates in other widths, and the best of them in all other tests: test_cpu_stages.py, test_winograd.py
@pytest.mark.slow
@pytest.mark.parametrize("level", available_levels()[:-1])
def test_lesser_levels(level: str) -> None:
    """The best level is what all other tests run at."""
    command = [sys.executable, at_level.__file__, level, *FILES]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def item(file: str, function: str, mark: pytest.MarkDecorator | None, **params: int) -> Any:
    """As pytest collects it, with what the plugin looks at."""
    closest = SimpleNamespace(
        get_closest_marker=lambda name: mark and mark.mark, callspec=SimpleNamespace(params=params)
    )
    return SimpleNamespace(path=Path(file), originalname=function, **vars(closest))


def test_a_mark_that_chooses_nothing_is_an_error() -> None:
    plugin, mark = at_level.EveryLevel(["a.py", "b.py"]), pytest.mark.every_level
    items = [item("a.py", "f", mark(x=[2]), x=n) for n in (1, 2)]
    items += [item("a.py", "g", None), item("b.py", "h", mark())]
    chosen = list(items)
    plugin.pytest_collection_modifyitems(chosen)
    assert chosen == [items[1], items[3]]
    with pytest.raises(pytest.UsageError, match=r"nothing of \[\('b.py', 'any function'\)\]"):
        plugin.pytest_collection_modifyitems(items[:3])
    with pytest.raises(pytest.UsageError, match=r"nothing of \[\('a.py', 'f'\)\]"):
        plugin.pytest_collection_modifyitems([items[0], item("a.py", "h", mark()), items[3]])
    with pytest.raises(KeyError, match="y"):
        plugin.pytest_collection_modifyitems([item("a.py", "f", mark(y=[2]), x=2), items[3]])


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value(dtype: torch.dtype) -> None:
    """Conversions are written by hand where there is no instruction: all 2^16 patterns, and rounding to both types."""
    zero = torch.zeros(1, 2**16)
    d_loss, weight, mse = torch.tensor(1.0), torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
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
