"""The criterion's stages on the CPU: thin calls of the operators in ``csrc/ops/criterion.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dtypes
from ...stages.interface import EndResult
from ...stages.projection import BatchNorm, LinearGradients, LinearMoments, Moments, linear_backward
from ...stages.workspace import Workspace
from . import convolution, vendor_conv, winograd


class CpuStages:
    """Implements :class:`~semckd_kernels.stages.interface.Stages`; the compiled operators must be loaded.

    Args:
        workspace: memory for results and scratch of our own convolution.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = torch.ops.semckd_cpu.row_moments(x)
        return mean, covariance

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        torch.ops.semckd_cpu.linear_relu(x, weight, bias, h)

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if convolution.choose(h.dtype) == "winograd":
            return winograd.conv3x3(h, weight, statistics, self.workspace)
        z = vendor_conv.conv3x3(h, weight)
        if not statistics:
            return z, None, None
        mean, variance = torch.ops.semckd_cpu.row_statistics(z)
        return z, mean, variance

    def end(
        self,
        z: Tensor,
        mean: Tensor,
        scale: Tensor,
        beta: Tensor,
        weight: Tensor,
        y: Tensor,
        coef: Tensor | None,
        d_h: Tensor | None,
    ) -> EndResult:
        if coef is None or d_h is None:
            return EndResult(torch.ops.semckd_cpu.projection_error(z, mean, scale, beta, weight, y), None, None, None)
        return EndResult(*torch.ops.semckd_cpu.projection_error_gradients(z, mean, scale, beta, weight, y, coef, d_h))

    def conv3x3_backward(
        self,
        h: Tensor,
        weight: Tensor,
        z: Tensor,
        d_h2: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if convolution.choose(h.dtype) == "winograd":
            return winograd.conv3x3_backward(h, weight, z, d_h2, a, b, c, self.workspace)
        torch.ops.semckd_cpu.row_affine_(d_h2, z, a, b, c)
        return vendor_conv.conv3x3_backward(h, weight, d_h2)

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
            # a product by rows and a sum: nothing that is worth a kernel
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
