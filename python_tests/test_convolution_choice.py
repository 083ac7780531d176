"""Which 3x3 convolution serves the CPU, and how to say so."""

from __future__ import annotations

import pytest
import torch
from criterion_problems import CASES, step
from served import CRITERION_SERVED

from semckd_kernels.backends.cpu import convolution, vendor_conv, winograd

pytestmark = pytest.mark.skipif(all(b.name != "cpu" for b in CRITERION_SERVED), reason="the CPU's kernels do not serve")


@pytest.mark.parametrize("choice", convolution.CHOICES)
def test_both_serve(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module in (vendor_conv, winograd):
        for name in ("conv3x3", "conv3x3_backward"):
            original = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, o=original, m=module: (calls.append(m), o(*a))[1])
    monkeypatch.setenv("SEMCKD_CONV", choice)
    case = CASES["square"]
    maps = case.maps(dtype=torch.float64)
    got, exact = (step(case.module(name, dtype=torch.float64), *maps) for name in ("cpu", "reference"))
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, exact.tensors[name], msg=name)
    assert set(calls) == {vendor_conv if choice == "vendor" else winograd}
    assert len(calls) == 2 * 6


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
