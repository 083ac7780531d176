r"""A projection's BatchNorms as algebra on vectors and small matrices.

The first convolution is 1x1 and linear, so the batch statistics of its result follow from mean and covariance of its
input, and the pre-activation is never formed:

.. math::
    m = W \mu, \quad v = \mathrm{diag}(W \Sigma W^T), \quad
    h = \mathrm{relu}(\gamma (W x - m) / \sqrt{v + \epsilon} + \beta) = \mathrm{relu}(W' x + b')

Its backward needs just :math:`A = \sum_p d_p x_p^T` and :math:`s = \sum_p d_p`, with d the gradient behind the ReLU:

.. math::
    d\gamma &= r \odot (\mathrm{rowdot}(A, W) - s \odot m), \quad d\beta = s, \qquad r = 1 / \sqrt{v + \epsilon} \\
    dW &= \gamma r \odot (A - s \mu^T - r\, d\gamma \odot W \Sigma) \\
    dx_p &= (\gamma r \odot W)^T d_p - \tfrac{1}{P} M (x_p - \mu) - \tfrac{1}{P} W^T (\gamma r \odot s), \quad
    M = W^T \mathrm{diag}(\gamma r^2\, d\gamma) W

M and the constant of all pairs that share an input are added up and applied once. With running statistics (``eval``)
mean and variance are constants, and the terms with :math:`\mu, \Sigma, M` are gone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# values of a channel; a pair of fewer is computed in fp64
ENOUGH_PIXELS = 32


def pair_dtype(map_dtype: torch.dtype, pixels: int) -> torch.dtype:
    """The type that a pair's maps are computed in: fp64 where BatchNorms take statistics of few values of a channel.

    Where a channel deviates by t times the usual deviation, a BatchNorm amplifies the rounding of its input by ``1/t``,
    and the rounding of ``diag(W Sigma W^T)`` by ``1/t^2``. Of P random values a share of about ``t^(P - 1)`` deviates
    so little: with two values one channel in a hundred has ``t < 0.01``, with thirty none. Two values give gradients
    that are off by 5e-4 in fp32 (5e-5 by plain code), and by 3e-8, the rounding of the result, in fp64. A product with
    so few pixels is a pass over the weights, in fp64 about four times as long.

    Args:
        map_dtype: type of the maps of the other pairs.
        pixels: ``B * h * w``, values of a channel.
    """
    return torch.float64 if pixels < ENOUGH_PIXELS else map_dtype


class Projection(NamedTuple):
    """The parameters of one pair's projection, regressor 0, 1, 3, 4 and 6 of the reference."""

    weight1: Tensor  # [K, c, 1, 1]
    gamma1: Tensor  # [K]
    beta1: Tensor
    weight2: Tensor  # [K, K, 3, 3]
    gamma2: Tensor
    beta2: Tensor
    weight3: Tensor  # [C, K, 1, 1]


class BatchNorm(NamedTuple):
    """What normalizes the input of a BatchNorm: ``(x - mean) * scale + beta``, ``scale = gamma * invstd``."""

    mean: Tensor
    invstd: Tensor
    scale: Tensor
    # mean and variance are those of the batch, and have gradients
    batch_statistics: bool

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, gamma: Tensor, eps: float, batch_statistics: bool) -> BatchNorm:
        invstd = torch.rsqrt(variance + eps)
        return cls(mean, invstd, gamma * invstd, batch_statistics)

    def backward_coefficients(self, sum_d: Tensor, d_gamma: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """a, b, c with ``d_input = a*d + b*input + c``, from the sum of d and the gradient of gamma."""
        if not self.batch_statistics:
            zero = torch.zeros_like(self.scale)
            return self.scale, zero, zero
        b = -self.scale * self.invstd * d_gamma / pixels
        return self.scale, b, -self.scale * sum_d / pixels - b * self.mean


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
