"""The work of Triton launches over tables of work, from the words of their rows: how many bytes and operations.

The words are those that ``stage_launches.py`` and ``layers.py`` of ``backends/triton/criterion/`` write. What is not
listed here reads and writes the tensors of its rows once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from semckd_kernels.backends.triton.launch import Extra, Work

Words = Sequence[Any]
# bytes, operations
Cost = tuple[float, float]


def _sizes(words: Words, *at: int) -> list[float]:
    return [float(words[n]) for n in at]


def _linear(words: Words, size: int) -> Cost:
    p, c, k = _sizes(words, 4, 5, 6)
    return p * (c + k) * size, 2 * p * c * k


def _d_x(words: Words, size: int) -> Cost:
    p, c = _sizes(words, 4, 5)
    pairs = words[7].words
    k = float(sum(pairs[3::4]))
    # x with its matrix, and what is added to
    with_matrix, added_to = words[8], words[9]
    return p * (2 * k + c * with_matrix) * size + p * c * 4 * (1 + added_to), 2 * p * c * (k + c * with_matrix)


def _d_weight1(words: Words, size: int) -> Cost:
    p, k, c = _sizes(words, 5, 7, 8)
    return p * (2 * k + c) * size, 2 * p * k * c


def _covariance(words: Words, size: int) -> Cost:
    p, c = _sizes(words, 3, 5)
    return p * c * size, 2 * p * c * c


def _end_fwd(words: Words, size: int) -> Cost:
    p, k, c = _sizes(words, 8, 9, 10)
    return p * (k + 2 * c) * size, 2 * p * k * c


def _end_d_h(words: Words, size: int) -> Cost:
    p, k, c = _sizes(words, 10, 11, 12)
    return p * (2 * k + c) * size, 2 * p * k * c


def _end_d_weight(words: Words, size: int) -> Cost:
    p, k, c = _sizes(words, 7, 9, 10)
    return p * (k + c) * size, 2 * p * k * c


def _fold(words: Words, size: int) -> Cost:
    k, c = _sizes(words, 15, 16)
    return k * c * (4 * 2 + 2 * size) + c * c * 4, 2 * k * c * c


def _linear_norm_backward(words: Words, _: int) -> Cost:
    k, c = _sizes(words, 11, 12)
    return 6 * k * c * 4, 0.0


def _input_terms(words: Words, _: int) -> Cost:
    c, k = float(words[2]), float(sum(words[4].words[3::4]))
    return (k * c + c * c) * 4, 2 * k * c * c


def _sum_slots(words: Words, _: int) -> Cost:
    total, inner = _sizes(words, 3, 4)
    return (total + 1) * inner * 4, 0.0


def _errors(words: Words, _: int) -> Cost:
    return float(words[2] * words[1].shape[0] * 4), 0.0


def _similarity(words: Words, size: int) -> Cost:
    batch, numel = _sizes(words, 2, 3)
    return batch * numel * size, 2 * batch * batch * numel


def _map_gradient(words: Words, size: int) -> Cost:
    batch, height, width, channels = _sizes(words, 2, 5, 6, 7)
    numel = height * width * channels
    parts = sum(_bytes(x) for x in words[11].words)
    return _bytes(words[1]) + batch * numel * size + parts, 2 * batch * batch * numel


ROWS: dict[str, Callable[[Words, int], Cost]] = {
    "linear_kernel": _linear,
    "d_x_kernel": _d_x,
    "linear_d_weight_kernel": _d_weight1,
    "covariance_kernel": _covariance,
    "end_fwd_kernel": _end_fwd,
    "end_d_h_kernel": _end_d_h,
    "end_d_weight_kernel": _end_d_weight,
    "fold_kernel": _fold,
    "linear_norm_backward_kernel": _linear_norm_backward,
    "input_terms_kernel": _input_terms,
    "sum_slots_kernel": _sum_slots,
    "errors_kernel": _errors,
    "similarity_kernel": _similarity,
    "map_gradient_kernel": _map_gradient,
}
# products of the accumulation type that must not use tensor cores
EXACT = {"covariance_kernel", "fold_kernel", "input_terms_kernel"}


def cost_of(kernel: str, work: Sequence[Work], constants: Mapping[str, Any]) -> tuple[float, float, str]:
    """Bytes, operations and their rate of one launch."""
    item = constants.get("MAP") or constants.get("TYPE")
    size = item.primitive_bitwidth // 8 if item is not None else 4
    total_bytes = total_flops = 0.0
    for row in work:
        if kernel in ROWS:
            moved, flops = ROWS[kernel](row.words, size)
        else:
            moved, flops = sum(_bytes(x) for x in row.words if not isinstance(x, Extra)), 0.0
        total_bytes += moved
        total_flops += flops
    precise = kernel in EXACT or constants.get("PRECISION") == "ieee"
    return total_bytes, total_flops, "16 bit" if size == 2 and kernel not in EXACT else "fp32" if precise else "tf32"


def _bytes(x: Any) -> float:
    return float(x.numel() * x.element_size()) if isinstance(x, torch.Tensor) else 0.0
