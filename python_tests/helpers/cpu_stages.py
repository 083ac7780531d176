"""The CPU's kernels one by one, each as an operator of its own (``csrc/ops/criterion.cpp``, ``winograd.cpp``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from plain_algebra import BackwardCoefficients, BatchNorm, LinearGradients, LinearMoments, Moments, linear_backward
from stage_interface import EndResult
from torch import Tensor

from semckd_kernels import dtypes
from semckd_kernels.stages.workspace import gradient_of, in_huge_pages


class Workspace:
    """Uninitialised tensors that are valid until :meth:`reset`: the n-th request gets the memory of the n-th before."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        nbytes = math.prod(shape) * dtype.itemsize
        if self._used == len(self._blocks):
            self._blocks.append(torch.empty(0, dtype=torch.uint8))
        if self._blocks[self._used].numel() < nbytes:
            self._blocks[self._used] = in_huge_pages(torch.empty(nbytes, dtype=torch.uint8))
        block = self._blocks[self._used]
        self._used += 1
        return block[:nbytes].view(dtype).view(tuple(shape))

    def reset(self) -> None:
        self._used = 0


class CpuStages:
    """Implements :class:`stage_interface.Stages`; the compiled operators must be loaded.

    Args:
        workspace: memory for the convolution's maps and scratch.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = torch.ops.semckd_cpu.row_moments(x)
        return mean, covariance

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        torch.ops.semckd_cpu.linear_relu(x, weight, bias, h)

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        acc = dtypes.acc_dtype(h.dtype)
        z = self.workspace.empty(h.shape, h.dtype)
        mean = h.new_empty(h.shape[-1], dtype=acc) if statistics else None
        variance = torch.empty_like(mean) if mean is not None else None
        torch.ops.semckd_cpu.winograd_conv3x3(h, weight.to(acc), self._scratch(h, False), z, mean, variance)
        return z, mean, variance

    def _scratch(self, h: Tensor, backward: bool) -> Tensor:
        return self.workspace.empty((torch.ops.semckd_cpu.winograd_scratch(h, backward),), torch.uint8)

    def end(
        self, z: Tensor, norm: BatchNorm, weight: Tensor, y: Tensor, coef: Tensor | None, d_h: Tensor | None
    ) -> EndResult:
        given = z, norm.mean, norm.scale, norm.beta, weight, y
        if coef is None or d_h is None:
            return EndResult(torch.ops.semckd_cpu.projection_error(*given), None, None, None)
        return EndResult(*torch.ops.semckd_cpu.projection_error_gradients(*given, coef, d_h))

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, coefficients: BackwardCoefficients
    ) -> tuple[Tensor, Tensor]:
        acc = dtypes.acc_dtype(h.dtype)
        d_h1, d_weight = self.workspace.empty(h.shape, h.dtype), gradient_of(weight, acc)
        given = h, weight.to(acc), z, d_h2, *coefficients
        torch.ops.semckd_cpu.winograd_conv3x3_backward(*given, self._scratch(h, True), d_h1, d_weight)
        return d_h1, d_weight

    def linear_relu_backward(
        self, x: Tensor, h: Tensor, d_h: Tensor, weight: Tensor, d_x: Tensor, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        d_weight, d_bias = torch.ops.semckd_cpu.linear_relu_backward(x, h, d_h, weight, d_x, accumulate)
        return d_weight, d_bias

    def linear_add_(self, x: Tensor, weight: Tensor, bias: Tensor, d_x: Tensor) -> None:
        torch.ops.semckd_cpu.linear_add_(x, weight, bias, d_x)

    def transpose_(self, x: Tensor, out: Tensor) -> None:
        torch.ops.semckd_cpu.transpose_(x, out)

    def linear_moments(self, moments: Moments, weight: Tensor) -> LinearMoments:
        mean, variance, with_input = torch.ops.semckd_cpu.linear_moments(weight, *moments)
        return LinearMoments(mean, variance, with_input, moments.mean)

    def linear_norm_backward(
        self, norm: BatchNorm, weight: Tensor, moments: LinearMoments | None, d_weight: Tensor, d_bias: Tensor
    ) -> LinearGradients:
        if moments is None:
            return linear_backward(norm, weight, None, d_weight, d_bias)
        given = moments.with_input, moments.input_mean, norm.mean, norm.invstd, norm.scale, d_weight, d_bias
        d_weight, d_gamma, matrix, constant = torch.ops.semckd_cpu.linear_norm_backward(weight, *given)
        return LinearGradients(d_weight, d_gamma, matrix, constant)

    def similarity(self, rows: Tensor) -> Tensor:
        result: Tensor = torch.ops.semckd_cpu.similarity(rows)
        return result

    def similarity_add_(self, d_similarity: Tensor, rows: Tensor, d_rows: Tensor) -> None:
        # student and teacher may be of different types
        fits = dtypes.acc_dtype(rows.dtype) == d_rows.dtype
        torch.ops.semckd_cpu.similarity_add_(d_similarity, rows if fits else rows.to(d_rows.dtype), d_rows)
