"""The only place with tolerances.

A result may be off by twice what the reference is off by in the same types, or by the floor of its type, whichever is
larger. Errors are relative in the Euclidean norm, against the reference in fp64 on the same inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# tests of the CUDA emulation do without torch, which sanitizers would have to be loaded before
if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# fp64 is judged by fp64: the floor leaves room for the cancellation in a softmax's Jacobian on both sides
FLOOR = {"float32": 2e-6, "float64": 1e-12, "float16": 2e-6, "bfloat16": 2e-6}


def relative_error(value: Tensor, exact: Tensor) -> float:
    """``||value - exact|| / ||exact||``; the numerator alone where ``exact`` is zero."""
    exact = exact.double()
    error = (value.double() - exact).norm().item()
    return error / (exact.norm().item() or 1.0)


def assert_close(value: Tensor, eager: Tensor, exact: Tensor, what: str) -> None:
    """``value`` against ``exact`` (fp64), judged by what ``eager`` (the reference in the same types) reaches."""
    assert value.shape == exact.shape, f"{what}: shape {tuple(value.shape)}, expected {tuple(exact.shape)}"
    assert value.dtype == eager.dtype, f"{what}: type {value.dtype}, expected {eager.dtype}"
    limit = max(2 * relative_error(eager, exact), FLOOR[str(value.dtype).removeprefix("torch.")])
    error = relative_error(value, exact)
    assert error <= limit, f"{what}: relative error {error:.2e}, allowed {limit:.2e}"


def assert_close_on_average(
    values: Sequence[Tensor], eagers: Sequence[Tensor], exacts: Sequence[Tensor], what: str
) -> None:
    """As :func:`assert_close` for the root mean square of many errors, where chance decides about a single one."""

    def average(results: Sequence[Tensor]) -> float:
        errors = [relative_error(x, exact) for x, exact in zip(results, exacts, strict=True)]
        return (sum(error * error for error in errors) / len(errors)) ** 0.5

    limit = max(2 * average(eagers), FLOOR[str(values[0].dtype).removeprefix("torch.")])
    error = average(values)
    assert error <= limit, f"{what}: relative error {error:.2e} on average, allowed {limit:.2e}"
