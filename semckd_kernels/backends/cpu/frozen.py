"""3x3 convolutions whose weights never change, with bias, addition and ReLU (``csrc/cpu/winograd/frozen.cpp``).

Which of them are ours is by time, batch 64 and 8, fp32, two threads of an Emerald Rapids with AVX-512: 2.0 to 2.6 times
as fast as oneDNN's with ReLU and addition behind it, at 32 to 256 channels and 56x56 to 8x8 pixels; 1.4 to 1.7 times at
256 and 512 channels and 14x14 to 5x5 pixels of batch 8, where the weights come from memory.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ...dtypes import FLOAT_TYPES, acc_dtype
from .convolution import choose

# of 16 channels ours takes 1.3 times the vendor's time, of 32 half of it
LEAST_CHANNELS = 32
TILE = 4


def has_form(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the form of ours: 3x3, stride 1, padding 1, and channels enough."""
    form = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and min(conv.weight.shape[:2]) >= LEAST_CHANNELS


def may_serve(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one of ours, for maps that :func:`serves` agrees to."""
    weight = conv.weight
    ours = weight.device.type == "cpu" and weight.dtype in FLOAT_TYPES and choose(weight.dtype) == "winograd"
    return ours and has_form(conv) and _is_compiled()


def serves(x: Tensor) -> bool:
    """Whether maps ``[B, c, h, w]`` of a convolution that :func:`may_serve` are better off with ours.

    Tiles of 4 x 4 pixels save three quarters of the multiplications, less what hangs over the edges: nothing is saved
    of 2 x 2 pixels, where the vendor's still takes 1.4 times the time, and of 1 x 1 ours takes four times the vendor's.
    """
    height, width = x.shape[2:]
    direct, products = 9 * height * width, (TILE + 2) ** 2 * -(-height // TILE) * -(-width // TILE)
    return min(height, width) > 1 and direct >= products and choose(x.dtype) == "winograd"


def transform(weight: Tensor) -> Tensor:
    """A weight ``[C, c, 3, 3]`` as :func:`convolve` reads it: of the accumulation type, in an order of its own."""
    transformed: Tensor = torch.ops.semckd_cpu.winograd_transform(weight.to(acc_dtype(weight.dtype)))
    return transformed


def convolve(
    x: Tensor, transformed: Tensor, channels: int, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """``relu(conv(x) + bias + residual)`` of maps ``[B, c, h, w]``, in channels_last order.

    Args:
        transformed: of the weight, by :func:`transform`.
        channels: of the result.
        bias: ``[channels]``.
        residual: ``[B, channels, h, w]`` of the type of x.
        relu: whether there is one.
    """
    added = None if residual is None else _rows(residual)
    wide = None if bias is None else bias.to(transformed.dtype)
    out: Tensor = torch.ops.semckd_cpu.winograd_frozen(_rows(x), transformed, channels, wide, added, relu)
    return out.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """The memory of maps in channels_last order, where they are in it; else a copy."""
    return x.permute(0, 2, 3, 1).contiguous()


def _is_compiled() -> bool:
    """Whether the library, which the package has loaded by now, is there and has the operators."""
    return hasattr(torch.ops.semckd_cpu, "winograd_frozen") and _register_fake()


@functools.cache
def _register_fake() -> bool:
    """For compiled code; always true."""

    @torch.library.register_fake("semckd_cpu::winograd_frozen")
    def _(
        x: Tensor, transformed: Tensor, channels: int, bias: Tensor | None, residual: Tensor | None, relu: bool
    ) -> Tensor:
        return x.new_empty(*x.shape[:3], channels)

    return True
