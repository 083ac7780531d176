"""Device functions of all kernels: rounding to the type of a map, the same under the interpreter; softmax."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

# the interpreter of triton 3.6 to 3.9 truncates fp32 to bf16, and takes the smallest subnormals for larger ones; GPUs
# round to nearest even
TRUNCATES_BF16 = tl.constexpr(isinstance(tl.sum, InterpretedFunction))


@triton.jit
def cast(x, TYPE: tl.constexpr):
    """Rounds to the type of a map."""
    if TRUNCATES_BF16 and TYPE.is_bf16() and x.dtype.is_fp32():
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(TYPE)


@triton.jit
def softmax(energy):
    """Over the last axis, a row or rows; -inf past the end of a row."""
    axis: tl.constexpr = len(energy.shape) - 1
    exp = tl.exp(energy - tl.max(energy, axis, keep_dims=True))
    return exp / tl.sum(exp, axis, keep_dims=True)
