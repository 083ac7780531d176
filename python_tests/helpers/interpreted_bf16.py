"""What Triton's interpreter needs to multiply bf16 matrices as a GPU does.

The interpreter (3.6 to 3.9) keeps bf16 numbers as their bits in uint16, and ``tl.dot`` multiplies the bits. Importing
this module makes it widen them first. Nothing happens where Triton is missing or compiles.
"""

from __future__ import annotations

import contextlib
from typing import Any


def _widen_operands() -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    create_dot = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot_of_numbers(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot_of_numbers


with contextlib.suppress(ModuleNotFoundError):
    _widen_operands()
