"""3x3 convolutions of rows by torch's own library (oneDNN on most machines), as ``csrc/ops/vendor_convolution.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from semckd_kernels.dtypes import acc_dtype

# maps of fewer pixels go to oneDNN in NCHW, copies included: at 1024 channels its channels_last path takes 1.7 times as
# long forward at 4x4 and 2.9 times at 2x2; from 8x8 on it is the faster one (fp32 and bf16, AVX-512, 2 threads)
_CHANNELS_LAST_PIXELS = 64


def conv3x3(h: Tensor, weight: Tensor) -> Tensor:
    """Convolution with stride 1 and zero padding 1.

    Args:
        h: rows ``[B, h, w, K]``.
        weight: ``[K, K, 3, 3]`` (out, in) of any type and strides.

    Returns:
        rows ``[B, h, w, K]`` of h's type.
    """
    layout, dtype = _layout(h), _dtype(h)
    z = torch.ops.aten.convolution(
        _as_map(h, layout, dtype), _weight(weight, layout, dtype), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    )
    return _as_rows(z, h.dtype)


def conv3x3_backward(h: Tensor, weight: Tensor, d_z: Tensor) -> tuple[Tensor, Tensor]:
    """Backward of :func:`conv3x3`.

    Args:
        h, weight: as there.
        d_z: rows ``[B, h, w, K]``.

    Returns:
        ``d_h``, rows of h's type; ``d_weight [K, K, 3, 3]`` in the accumulation type, of the weight's strides.
    """
    layout, dtype = _layout(h), _dtype(h)
    d_h, d_weight, _ = torch.ops.aten.convolution_backward(
        _as_map(d_z, layout, dtype),
        _as_map(h, layout, dtype),
        _weight(weight, layout, dtype),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, False],
    )
    acc = acc_dtype(h.dtype)
    # empty_like keeps strides only where they are dense, as a parameter's are
    return _as_rows(d_h, h.dtype), torch.empty_like(weight, dtype=acc).copy_(d_weight)


def _layout(h: Tensor) -> torch.memory_format:
    small = h.shape[1] * h.shape[2] < _CHANNELS_LAST_PIXELS
    return torch.contiguous_format if small else torch.channels_last


def _dtype(h: Tensor) -> torch.dtype:
    # without fp16 instructions oneDNN takes ten times as long as in fp32, both ways
    return torch.float32 if h.dtype == torch.float16 else h.dtype


def _as_map(rows: Tensor, layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
    return rows.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=layout)


def _weight(weight: Tensor, layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous(memory_format=layout)


def _as_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()
