"""Copies between types and layouts, one launch a pair of types: the host side of ``convert_kernels.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..launch import TYPES, Launches, Work
from .convert_kernels import convert_kernel

Triple = tuple[int, int, int]

BLOCK_J, BLOCK_I = 32, 32
# elements whose multiples are 128 bits in every type
_ALIGNED = 8
_ALONG_I, _ALONG_J, _ANY = range(3)


def is_row_major(x: Tensor) -> bool:
    """Whether memory holds the elements in order, whatever strides dimensions of size one have."""
    expected = 1
    for length, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if length != 1:
            if stride != expected:
                return False
            expected *= length
    return True


def is_aligned(x: Tensor) -> bool:
    """Whether the address is what kernels are promised."""
    return x.data_ptr() % 16 == 0


class Conversions:
    """``out = factor * x`` for many tensors.

    Args:
        acc_dtype: the accumulation type, in which the factor is applied.
    """

    def __init__(self, acc_dtype: torch.dtype) -> None:
        self._acc_dtype = acc_dtype
        self._work: dict[tuple[torch.dtype, torch.dtype], list[Work]] = {}

    def add(
        self,
        x: tuple[Tensor | int, torch.dtype, Triple],
        out: tuple[Tensor | int, torch.dtype, Triple],
        shape: Triple,
        factor: float = 1.0,
    ) -> None:
        """One copy of ``[O, J, I]`` elements.

        Args:
            x, out: a tensor or an address, its type, and the strides of O, J and I.
            shape: O, J, I.
        """
        (source, x_dtype, x_strides), (target, out_dtype, out_strides) = x, out
        x_strides, out_strides = (
            (strides[0] if shape[0] > 1 else 0, strides[1] if shape[1] > 1 else 0, strides[2])
            for strides in (x_strides, out_strides)
        )
        if x_strides[2] == out_strides[2] == 1 and not any(
            n % _ALIGNED for n in (shape[2], *x_strides[:2], *out_strides[:2])
        ):
            kind = _ALONG_I
        else:
            kind = _ALONG_J if x_strides[1] == out_strides[2] == 1 else _ANY
        programs = shape[0] * -(-shape[1] // BLOCK_J) * -(-shape[2] // BLOCK_I)
        words = (source, target, *shape[1:], *x_strides, *out_strides, kind, float(factor))
        self._work.setdefault((x_dtype, out_dtype), []).append(Work(programs, words))

    def launch(self, launches: Launches) -> None:
        """One launch for each pair of types."""
        for (x_dtype, out_dtype), work in self._work.items():
            constants = {
                "SOURCE": TYPES[x_dtype],
                "OUT": TYPES[out_dtype],
                "ACC": TYPES[self._acc_dtype],
                "BLOCK_J": BLOCK_J,
                "BLOCK_I": BLOCK_I,
            }
            launches.add(convert_kernel, work, constants, {"num_warps": 4, "num_stages": 1})
        self._work = {}

    def matrix(self, x: Tensor, out: Tensor | int, out_dtype: torch.dtype, transposed: bool = False) -> None:
        """``[m, n, 1, ...]`` of any strides to row-major ``[m, n]``, or to ``[n, m]``."""
        m, n = x.shape[:2]
        s_m, s_n = x.stride()[:2]
        if transposed:
            self.add((x, x.dtype, (0, s_n, s_m)), (out, out_dtype, (0, m, 1)), (1, n, m))
        else:
            self.add((x, x.dtype, (0, s_m, s_n)), (out, out_dtype, (0, n, 1)), (1, m, n))

    def vector(self, x: Tensor, out: Tensor | int, out_dtype: torch.dtype) -> None:
        """``[n]`` of any stride to contiguous."""
        self.add((x, x.dtype, (0, 0, x.stride(0))), (out, out_dtype, (0, 0, 1)), (1, 1, len(x)))

    def tensor(self, x: Tensor, out: Tensor, factor: float = 1.0) -> bool:
        """A tensor of up to four dimensions into another of its shape; False where its strides ask for more than three.

        A kernel ``[K, c, 3, 3]`` goes as ``[K, c, 9]`` or ``[K, 9, c]``.
        """
        if x.stride() == out.stride() and x.numel() and _is_dense(x):
            # memory as it lies
            rows = x.shape[0] if x.dim() and x.stride(0) == x.numel() // x.shape[0] else 1
            each = x.numel() // rows
            self.add((x, x.dtype, (0, each, 1)), (out, out.dtype, (0, each, 1)), (1, rows, each), factor)
            return True
        dims = _merged(x.shape, x.stride(), out.stride())
        if len(dims) > 3:
            return False
        # contiguous along the last in the result
        dims = sorted([(1, 0, 0)] * (3 - len(dims)) + dims, key=lambda dim: -dim[2] if dim[0] > 1 else -(1 << 62))
        shape, x_strides, out_strides = zip(*dims, strict=True)
        self.add((x, x.dtype, x_strides), (out, out.dtype, out_strides), shape, factor)
        return True


def _is_dense(x: Tensor) -> bool:
    order = sorted(range(x.dim()), key=lambda d: x.stride(d))
    expected = 1
    for d in order:
        if x.shape[d] != 1:
            if x.stride(d) != expected:
                return False
            expected *= x.shape[d]
    return True


def _merged(shape: Sequence[int], x: Sequence[int], out: Sequence[int]) -> list[Triple]:
    """Dimensions (size, stride, stride) with neighbours that lie alike on both sides made one."""
    dims: list[Triple] = []
    for length, a, b in zip(shape, x, out, strict=True):
        if length == 1:
            continue
        if dims and dims[-1][1] == a * length and dims[-1][2] == b * length:
            dims[-1] = (dims[-1][0] * length, a, b)
        else:
            dims.append((length, a, b))
    return dims
