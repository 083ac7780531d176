"""The stand-in itself: a program without a fault raises no alarm, and each class of fault is seen."""

from __future__ import annotations

from typing import Any

import pytest

from . import faults
from .child import ChildFailed, run


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = run(faults.all_faults, devices=2)
    return result


def test_a_program_without_a_fault(found: dict[str, Any]) -> None:
    """Two products and a Triton kernel, one of them captured; a capture itself waits once before it begins."""
    without = found["none"]
    assert without["error"] == ""
    assert without["copies"] == ["H2D pinned"]
    assert without["counts"]["kernel"] == 2
    assert without["counts"]["triton"] == 1
    assert without["counts"]["sync"] == 1
    assert not {"illegal", "unsupported"} & set(without["counts"])


def test_a_synchronisation_is_seen(found: dict[str, Any]) -> None:
    assert found["synchronisation"] == ["stream", "stream", "device", "event"]


def test_a_pageable_copy_is_seen(found: dict[str, Any]) -> None:
    assert found["pageable_copy"] == ["H2D pageable", "H2D pinned"]


def test_a_cpu_tensor_among_cuda_tensors_is_refused(found: dict[str, Any]) -> None:
    triton, pointwise, product = found["cpu_tensor"]
    assert "cpu tensor?" in triton
    assert "same device" in pointwise
    assert "one device" in product


@pytest.mark.parametrize("call", ["synchronise", "pageable", "outside_event"])
def test_an_illegal_call_in_a_capture_ends_it(call: str, found: dict[str, Any]) -> None:
    error, *illegal = found["illegal_in_capture"][call]
    assert "cudaErrorStreamCaptureInvalidated" in error
    assert len(illegal) == 1


def test_a_stream_that_is_not_joined_is_seen(found: dict[str, Any]) -> None:
    joined, unjoined, *captures = found["stream_not_joined"]
    assert joined == ""
    assert "cudaErrorStreamCaptureUnjoined" in unjoined
    assert captures == ["begin", "ok", "begin", "unjoined"]


def test_an_allocation_elsewhere_ends_a_global_capture_only(found: dict[str, Any]) -> None:
    capture, allocation = found["threads"]["global"]
    assert "cudaErrorStreamCaptureInvalidated" in capture
    assert "cudaErrorStreamCaptureUnsupported" in allocation
    assert found["threads"]["thread_local"] == ["", ""]


def test_a_launch_on_another_device_is_refused(found: dict[str, Any]) -> None:
    error, illegal = found["other_device"]
    assert "400" in error or "InvalidResourceHandle" in error
    assert illegal == "launch on a stream of another device than the current one"


def test_a_missing_function_is_named(found: dict[str, Any]) -> None:
    assert found["unsupported"] == [801, "cudaChooseDevice"]


def test_a_child_that_raises_is_reported() -> None:
    with pytest.raises(ChildFailed, match="KeyError: 'nothing'"):
        run(raise_key_error, "nothing")


def raise_key_error(key: str) -> None:
    raise KeyError(key)
