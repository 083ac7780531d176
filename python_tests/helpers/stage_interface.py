"""The steps of one pair's projection and their backward, one by one: what kernels are tested and measured as.

Every map here is *rows*: a contiguous tensor ``[B, h, w, C]`` (a channels_last map as its memory lies), of the type
that maps are computed in, the *map type*. Vectors, small matrices and sums have the *accumulation type* (acc): fp32, or
fp64 for fp64 maps. ``P = B*h*w`` is the number of pixels, ``c`` the student's channels, ``C`` the teacher's, and
``K = 2C``.

A pair's way through its projection (regressor 0..6 of the reference) and back::

    x [P,c] --linear_relu--> h1 [P,K] --conv3x3--> z [P,K] --end--> squared error [B]
                                                              |
    d_x <--linear_relu_backward-- d_h1 <--conv3x3_backward-- d_h2

Gradients here are those of ``sum_b coef[b]/2 * squared_error[b]``. For fp16 maps ``coef`` is the attention weight, of
about one, so that nothing underflows, and the engine multiplies finished gradients by ``2/(N*B*S)``; for others, whose
exponents reach further, ``coef`` holds that factor.

Every implementation is deterministic (no floating-point atomics, sums in a fixed order), keeps NaN and inf, takes any
sizes, and neither waits for the device nor reads from it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from plain_algebra import BackwardCoefficients, BatchNorm, LinearGradients, LinearMoments, Moments, linear_backward
from torch import Tensor

from semckd_kernels import dtypes
from semckd_kernels.stages import attention


class PairSize(NamedTuple):
    """Of one pair's maps."""

    B: int
    h: int
    w: int
    c: int
    C: int

    @property
    def K(self) -> int:
        return 2 * self.C

    @property
    def P(self) -> int:
        return self.B * self.h * self.w


class EndResult(NamedTuple):
    """What :meth:`Stages.end` gives; all but the first are None where no gradient was asked for."""

    squared_error: Tensor  # [B] acc
    d_weight: Tensor | None  # [C, K] acc
    sum_d: Tensor | None  # [K] acc: sum over pixels of d_h2
    sum_dz: Tensor | None  # [K] acc: sum over pixels of d_h2 * (z - mean)


class Stages(Protocol):
    """The steps of one pair, on one backend."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance over pixels.

        Args:
            x: rows ``[B, h, w, c]``.

        Returns:
            ``mean [c]`` and ``covariance [c, c] = 1/P sum_p (x[p] - mean)(x[p] - mean)^T``, acc.
        """
        ...

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        """``h[p] = relu(weight @ x[p] + bias)``.

        Args:
            x: rows ``[B, h, w, c]``.
            weight: ``[K, c]`` acc, contiguous.
            bias: ``[K]`` acc.
            h: rows ``[B, h, w, K]``, written.
        """
        ...

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """3x3 convolution, stride 1, zero padding 1, and the batch statistics of its result.

        Args:
            h: rows ``[B, h, w, K]``.
            weight: ``[K, K, 3, 3]`` (out, in) in the parameter's own type, of any strides.
            statistics: whether mean and variance are wanted.

        Returns:
            ``z``, rows ``[B, h, w, K]``; ``mean [K]`` and biased ``variance [K]`` over its pixels, acc, or None twice.
        """
        ...

    def end(
        self, z: Tensor, norm: BatchNorm, weight: Tensor, y: Tensor, coef: Tensor | None, d_h: Tensor | None
    ) -> EndResult:
        """Second BatchNorm + ReLU, last 1x1 convolution, squared error; and back to the ReLU's output.

        ``h2 = relu((z - mean)*scale + beta)``, ``r = weight @ h2 - y``, ``squared_error[b] = sum r^2`` over sample b;
        ``d_r = coef[b]*r``, ``d_weight = sum_p d_r h2^T``, ``d_h = weight^T d_r``, and 0 where ``h2 <= 0``.

        Args:
            z: rows ``[B, h, w, K]``, the second convolution's result.
            norm: the second BatchNorm, ``[K]`` acc; of it mean, scale and beta are used.
            weight: ``[C, K]`` acc, contiguous.
            y: rows ``[B, h, w, C]``, the teacher's map.
            coef: ``[B]`` acc, or None: the squared error alone is wanted.
            d_h: rows ``[B, h, w, K]``, written where ``coef`` is given: the gradient behind the ReLU's mask.
        """
        ...

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, coefficients: BackwardCoefficients
    ) -> tuple[Tensor, Tensor]:
        """Backward of the second BatchNorm and of the 3x3 convolution.

        ``d_z = a*d_h2 + b*z + c`` per channel, ``d_h1 = conv_transpose(d_z)``, ``d_weight`` the convolution's.

        Args:
            h, weight: as :meth:`conv3x3`.
            z: its result.
            d_h2: rows ``[B, h, w, K]``; may be overwritten.
            coefficients: ``[K]`` acc.

        Returns:
            ``d_h1``, rows ``[B, h, w, K]``; ``d_weight [K, K, 3, 3]`` acc, of the weight's strides.
        """
        ...

    def linear_relu_backward(
        self, x: Tensor, h: Tensor, d_h: Tensor, weight: Tensor, d_x: Tensor, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        """Backward of :meth:`linear_relu`, with another weight for the way back to x.

        ``d = d_h``, and 0 where ``h <= 0``; ``d_x[p] (+)= d[p] @ weight``.

        Args:
            x, h: as :meth:`linear_relu`.
            d_h: rows ``[B, h, w, K]``; may be overwritten.
            weight: ``[K, c]`` acc, contiguous.
            d_x: rows ``[B, h, w, c]`` acc; added to where ``accumulate``, else written.

        Returns:
            ``sum_p d[p] x[p]^T [K, c]`` and ``sum_p d[p] [K]``, acc.
        """
        ...

    def linear_add_(self, x: Tensor, weight: Tensor, bias: Tensor, d_x: Tensor) -> None:
        """``d_x[p] += weight @ x[p] + bias``.

        Args:
            x: rows ``[B, h, w, c]``.
            weight: ``[c, c]`` acc, contiguous.
            bias: ``[c]`` acc.
            d_x: rows ``[B, h, w, c]`` acc, added to.
        """
        ...

    def transpose_(self, x: Tensor, out: Tensor) -> None:
        """``out[b] = x[b]^T``: from a contiguous map ``[B, C, h*w]`` to rows, or back.

        Args:
            x: ``[B, m, n]``, contiguous.
            out: ``[B, n, m]`` of the same type, contiguous, written.
        """
        ...

    def linear_moments(self, moments: Moments, weight: Tensor) -> LinearMoments:
        """:meth:`plain_algebra.Moments.of_linear`.

        Args:
            moments: of x.
            weight: ``[K, c]`` acc, contiguous.
        """
        ...

    def linear_norm_backward(
        self, norm: BatchNorm, weight: Tensor, moments: LinearMoments | None, d_weight: Tensor, d_bias: Tensor
    ) -> LinearGradients:
        """:func:`plain_algebra.linear_backward`; all contiguous."""
        ...

    def similarity(self, rows: Tensor) -> Tensor:
        """``rows @ rows^T``, ``[B, N] -> [B, B]``, acc.

        Args:
            rows: a layer's samples in its own type, contiguous.
        """
        ...

    def similarity_add_(self, d_similarity: Tensor, rows: Tensor, d_rows: Tensor) -> None:
        """``d_rows += d_similarity @ rows``.

        Args:
            d_similarity: ``[B, B]`` acc, contiguous.
            rows: as :meth:`similarity`.
            d_rows: ``[B, N]`` acc, contiguous, added to.
        """
        ...


class TorchMatrices:
    """The steps on matrices alone by torch, for backends without kernels for them."""

    def transpose_(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.mT)

    def linear_moments(self, moments: Moments, weight: Tensor) -> LinearMoments:
        return moments.of_linear(weight)

    def linear_norm_backward(
        self, norm: BatchNorm, weight: Tensor, moments: LinearMoments | None, d_weight: Tensor, d_bias: Tensor
    ) -> LinearGradients:
        return linear_backward(norm, weight, moments, d_weight, d_bias)

    def similarity(self, rows: Tensor) -> Tensor:
        return attention.similarity(rows, dtypes.acc_dtype(rows.dtype))

    def similarity_add_(self, d_similarity: Tensor, rows: Tensor, d_rows: Tensor) -> None:
        d_rows.addmm_(d_similarity, rows.to(d_rows.dtype))
