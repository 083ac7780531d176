"""Which 3x3 convolution serves the CPU, and how to say so."""

from __future__ import annotations

import pytest
import torch
from criterion_problems import CASES, step
from served import CRITERION_SERVED

from semckd_kernels.backends.cpu import convolution

pytestmark = pytest.mark.skipif(all(b.name != "cpu" for b in CRITERION_SERVED), reason="the CPU's kernels do not serve")


@pytest.mark.parametrize("choice", convolution.CHOICES)
def test_both_serve(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCKD_CONV", choice)
    case = CASES["square"]
    maps = case.maps(dtype=torch.float64)
    exact = step(case.module("reference", dtype=torch.float64), *maps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = step(case.module("cpu", dtype=torch.float64), *maps)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, exact.tensors[name], msg=name)
    calls = [event.name for event in profile.events()]
    pairs = 6 if choice == "vendor" else 0
    assert [calls.count(f"aten::{name}") for name in ("convolution", "convolution_backward")] == [pairs, pairs]


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCKD_CONV", "direct")
    case = CASES["square"]
    with pytest.raises(ValueError, match="SEMCKD_CONV must be one of vendor, winograd, got 'direct'"):
        case.module("cpu")(*case.maps())
    assert convolution.describe() == "SEMCKD_CONV must be one of vendor, winograd, got 'direct'"


def test_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMCKD_CONV", raising=False)
    monkeypatch.setattr(convolution, "_has_amx", lambda: False)
    assert convolution.describe() == "winograd for float32, winograd for bfloat16 (default)"
    monkeypatch.setattr(convolution, "_has_amx", lambda: True)
    assert convolution.describe() == "winograd for float32, vendor for bfloat16 (default)"
