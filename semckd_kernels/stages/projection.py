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
