"""A projection's BatchNorms as algebra on vectors and small matrices, in plain PyTorch.

The formulas are those of ``semckd_kernels/stages/projection.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BatchNorm(NamedTuple):
    """What normalizes the input of a BatchNorm: ``(x - mean) * scale + beta``, ``scale = gamma * invstd``."""

    mean: Tensor
    invstd: Tensor
    scale: Tensor
    beta: Tensor
    # mean and variance are those of the batch, and have gradients
    batch_statistics: bool

    @classmethod
    def of(
        cls, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float, batch_statistics: bool
    ) -> BatchNorm:
        invstd = torch.rsqrt(variance + eps)
        return cls(mean, invstd, gamma * invstd, beta, batch_statistics)

    def backward_coefficients(self, sum_d: Tensor, d_gamma: Tensor, pixels: int) -> BackwardCoefficients:
        """From the sum of d and the gradient of gamma."""
        if not self.batch_statistics:
            zero = torch.zeros_like(self.scale)
            return BackwardCoefficients(self.scale, zero, zero)
        b = -self.scale * self.invstd * d_gamma / pixels
        return BackwardCoefficients(self.scale, b, -self.scale * sum_d / pixels - b * self.mean)


class BackwardCoefficients(NamedTuple):
    """A BatchNorm's backward, of the gradient d of its result: ``d_input = a*d + b*input + c``, per channel."""

    a: Tensor
    b: Tensor
    c: Tensor


class Moments(NamedTuple):
    """Mean ``[c]`` and covariance ``[c, c]`` over the pixels of a projection's input."""

    mean: Tensor
    covariance: Tensor

    def of_linear(self, weight: Tensor) -> LinearMoments:
        """Those of ``weight @ x``; weight is ``[K, c]``."""
        with_input = weight @ self.covariance
        # rounding may leave the variance of a constant below zero; what overflowed is infinite, not inf - inf. NaN in
        # the input is in the mean as well
        variance = (with_input * weight).sum(1).nan_to_num(nan=math.inf, posinf=math.inf).clamp_min(0)
        return LinearMoments(weight @ self.mean, variance, with_input, self.mean)


class LinearMoments(NamedTuple):
    """Of ``W x``: mean and biased variance ``[K]``, covariance with x ``W Sigma [K, c]``; and the mean of x ``[c]``."""

    mean: Tensor
    variance: Tensor
    with_input: Tensor
    input_mean: Tensor


class LinearGradients(NamedTuple):
    """Gradients of the first convolution and BatchNorm, and what they add to that of the shared input."""

    d_weight: Tensor  # [K, c]
    d_gamma: Tensor  # [K]
    # d_x[p] += -(matrix @ (x[p] - mean) + constant) / P; None with running statistics
    matrix: Tensor | None  # M [c, c]
    constant: Tensor | None  # [c]


def linear_backward(
    norm: BatchNorm, weight: Tensor, moments: LinearMoments | None, d_weight: Tensor, d_bias: Tensor
) -> LinearGradients:
    """The backward of the first convolution and BatchNorm.

    Args:
        norm: the BatchNorm.
        weight: ``W [K, c]``.
        moments: of the convolution's result; None with running statistics.
        d_weight: ``A = sum_p d_p x_p^T [K, c]``.
        d_bias: ``s = sum_p d_p [K]``.
    """
    d_gamma = norm.invstd * ((d_weight * weight).sum(1) - d_bias * norm.mean)
    if moments is None:
        return LinearGradients(norm.scale[:, None] * d_weight, d_gamma, None, None)
    slope = norm.invstd * d_gamma
    centred = d_weight - d_bias[:, None] * moments.input_mean - slope[:, None] * moments.with_input
    matrix = weight.t() @ ((norm.scale * slope)[:, None] * weight)
    return LinearGradients(norm.scale[:, None] * centred, d_gamma, matrix, (norm.scale * d_bias) @ weight)
