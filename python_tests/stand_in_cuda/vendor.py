"""Stands in for cuBLAS and cuDNN, which would ask a real GPU: ``install`` replaces the operators that call them.

Each is replaced at the CUDA dispatch key by one record of kind ``vendor``, with the results' shapes, types and strides,
and with the layout copies that torch makes around it. The record's name begins with ``gemm``, ``conv`` or ``norm``
and ends with ``flops=N``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .records import library

NHWC = torch.channels_last
_REPLACEMENTS: dict[str, Callable[..., Any]] = {}
_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """From here on, no call reaches cuBLAS or cuDNN."""
    _LIBRARIES.append(torch.library.Library("aten", "IMPL"))
    for name, function in _REPLACEMENTS.items():
        _LIBRARIES[-1].impl(name, function, "CUDA", allow_override=True)


def record(name: str, flops: int, *tensors: Tensor) -> None:
    """One call of a vendor's library on the current stream."""
    size = sum(x.nbytes for x in tensors)
    with torch.cuda.device(tensors[0].device):
        stream = torch.cuda.current_stream().cuda_stream
        library().stand_in_record(b"vendor", f"{name} flops={flops}".encode(), size, stream)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _replaces(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _REPLACEMENTS[name] = function
        return function

    return register


# --- products -----------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor, out: Tensor, *others: Tensor) -> Tensor:
    for x in (b, *others):
        if x.dtype != a.dtype:
            raise RuntimeError(f"expected operands of one type, got {short(a.dtype)} and {short(x.dtype)}")
        if x.device != a.device:
            raise RuntimeError(f"expected operands on one device, got {a.device} and {x.device}")
    *batch, m, k = a.shape
    n = b.shape[-1] if b.dim() > 1 else 1
    number = batch[0] if batch else 1
    record(f"gemm {number}x{m}x{k}x{n} {short(a.dtype)}", 2 * number * m * k * n, a, b, out)
    return out


@_replaces("mm")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], b.shape[1])))


@_replaces("mm.dtype")
def _mm_dtype(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype))


@_replaces("mm.out")
def _mm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    return _product(a, b, out)


@_replaces("mv")
def _mv(a: Tensor, x: Tensor) -> Tensor:
    return _product(a, x, a.new_empty(a.shape[0]))


@_replaces("addmm")
def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], b.shape[1])), c)


@_replaces("addmm.out")
def _addmm_out(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor) -> Tensor:
    return _product(a, b, out, c)


@_replaces("addmm_")
def _addmm_(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _product(a, b, c)


@_replaces("_addmm_activation")
def _addmm_activation(
    c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, use_gelu: bool = False
) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], b.shape[1])), c)


@_replaces("bmm")
def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], a.shape[1], b.shape[2])))


@_replaces("bmm.out")
def _bmm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    return _product(a, b, out)


@_replaces("baddbmm")
def _baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _product(a, b, a.new_empty((a.shape[0], a.shape[1], b.shape[2])), c)


# --- convolutions -------------------------------------------------------------------------------------------------


def _layout(*tensors: Tensor) -> torch.memory_format:
    """The layout that torch's calls of cuDNN choose: channels_last where one operand has it unmistakably."""
    found = any(x.is_contiguous(memory_format=NHWC) and not x.is_contiguous() for x in tensors)
    return NHWC if found else torch.contiguous_format


def _record_convolution(what: str, weight: Tensor, out: Tensor, layout: torch.memory_format, *tensors: Tensor) -> None:
    shape = "x".join(map(str, weight.shape))
    order = "NHWC" if layout is NHWC else "NCHW"
    repeatable = " deterministic" if torch.backends.cudnn.deterministic else ""
    name = f"conv {what} {shape} {order} {short(weight.dtype)}{repeatable}"
    record(name, 2 * out.numel() * weight[0].numel(), *tensors)


def _check_types(*tensors: Tensor) -> None:
    if len({x.dtype for x in tensors}) > 1:
        raise RuntimeError(f"expected operands of one type, got {', '.join(short(x.dtype) for x in tensors)}")


@_replaces("cudnn_convolution")
def _convolution(
    x: Tensor,
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
) -> Tensor:
    _check_types(x, weight)
    layout = _layout(x, weight)
    x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
    kernel = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in range(2)]
    size = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    out = torch.empty((len(x), len(weight), *size), dtype=x.dtype, device=x.device, memory_format=layout)
    _record_convolution("forward", weight, out, layout, x, weight, out)
    return out


@_replaces("cudnn_convolution_relu")
def _convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """One launch, of convolution, bias and ReLU."""
    return _convolution(x, weight, padding, stride, dilation, groups, False, False, False)


@_replaces("cudnn_convolution_add_relu")
def _convolution_add_relu(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    alpha: float | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """One launch, of convolution, bias, addition and ReLU; z is brought into the layout of the result."""
    out = _convolution(x, weight, padding, stride, dilation, groups, False, False, False)
    _check_types(out, z)
    if z.shape != out.shape:
        raise RuntimeError(f"expected what is added to be {list(out.shape)}, got {list(z.shape)}")
    z.contiguous(memory_format=_layout(out))
    return out


@_replaces("convolution_backward")
def _convolution_backward(
    d_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    _check_types(d_out, x, weight)
    layout = _layout(x, weight)
    d_out, x = (t.contiguous(memory_format=layout) for t in (d_out, x))
    d_x = d_weight = None
    if mask[0]:
        weight = weight.contiguous(memory_format=layout)
        d_x = torch.empty_like(x, memory_format=layout)
        _record_convolution("d_input", weight, d_out, layout, d_out, weight, d_x)
    if mask[1]:
        d_weight = torch.empty(weight.shape, dtype=d_out.dtype, device=x.device, memory_format=layout)
        _record_convolution("d_weight", weight, d_out, layout, d_out, x, d_weight)
    return d_x, d_weight, d_out.sum((0, 2, 3)) if mask[2] else None


# --- normalisation ------------------------------------------------------------------------------------------------


@_replaces("cudnn_batch_norm")
def _batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = torch.empty_like(x)
    # statistics are a pass of their own
    record("norm forward", 0, x, x, out)
    return out, torch.empty_like(weight), torch.empty_like(weight), x.new_empty(0, dtype=torch.uint8)


@_replaces("cudnn_batch_norm_backward")
def _batch_norm_backward(x: Tensor, d_out: Tensor, weight: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    d_x = torch.empty_like(x)
    record("norm backward", 0, x, x, d_out, d_out, d_x)
    return d_x, torch.empty_like(weight), torch.empty_like(weight)
