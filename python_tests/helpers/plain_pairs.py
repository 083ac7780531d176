"""What a backend does with a chunk of pairs, over the steps of one pair: the plain implementation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from plain_algebra import BatchNorm, LinearGradients, LinearMoments, Moments
from stage_interface import Stages
from torch import Tensor

from semckd_kernels.stages.backend import Group, Norm, Pair, PairResult, kept_dtype
from semckd_kernels.stages.projection import Projection


class PlainPairs:
    """The part of :class:`~semckd_kernels.stages.backend.Backend` that works off pairs, one by one.

    Args:
        stages: the steps of one pair.
        need_grad: whether gradients are wanted.
    """

    def __init__(self, stages: Stages, need_grad: bool) -> None:
        self.stages, self.need_grad = stages, need_grad

    def chunks(self, groups: Sequence[Group]) -> Iterable[list[Group]]:
        return ([group] for group in groups)

    def run_chunk(self, chunk: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]:
        return [result for group in chunk for result in self._run_group(group, alpha.flatten(1), mse.flatten(1))]

    def _run_group(self, group: Group, alpha: Tensor, mse: Tensor) -> list[PairResult]:
        """The pairs of one student layer at one resolution, with the gradient of their common input."""
        moments = None
        if any(pair.norms[0].batch_statistics for pair in group.pairs):
            moments = Moments(*self.stages.moments(group.x))
        results = []
        d_x, accumulate = group.gradient() if group.d_x is not None else (None, False)
        matrix = constant = None
        for n, pair in enumerate(group.pairs):
            run = _PairRun(self, group, pair, moments)
            run.forward(alpha[:, pair.q].to(group.acc_dtype) * pair.coefficient, mse[:, pair.q])
            if d_x is None:
                results.append(PairResult(run.statistics, None))
                continue
            linear, gradients = run.backward(d_x, n > 0 or accumulate)
            results.append(PairResult(run.statistics, gradients))
            if linear.matrix is not None and linear.constant is not None:
                if pair.outside != group.later:
                    linear.matrix.mul_(pair.outside / group.later)
                    linear.constant.mul_(pair.outside / group.later)
                matrix = linear.matrix if matrix is None else matrix.add_(linear.matrix)
                constant = linear.constant if constant is None else constant.add_(linear.constant)
        if d_x is not None and moments is not None and matrix is not None and constant is not None:
            bias = (matrix @ moments.mean - constant) / group.pixels
            self.stages.linear_add_(group.x, matrix / -group.pixels, bias, d_x)
        return results


class _PairRun:
    """One pair's way through its projection and back."""

    def __init__(self, backend: PlainPairs, group: Group, pair: Pair, moments: Moments | None) -> None:
        self.stages, self.acc_dtype = backend.stages, group.acc_dtype
        self.group, self.pair, self.moments = group, pair, moments
        self.need_grad = backend.need_grad
        self.statistics: list[Tensor] = []

    def to_acc(self, x: Tensor) -> Tensor:
        return x.detach().to(self.acc_dtype)

    def empty(self, channels: int) -> Tensor:
        """Uninitialised rows at the pair's resolution."""
        x = self.group.x
        return torch.empty((*x.shape[:3], channels), dtype=x.dtype, device=x.device)

    def norm(self, norm: Norm, mean: Tensor | None, variance: Tensor | None, gamma: Tensor, beta: Tensor) -> BatchNorm:
        """A BatchNorm from the batch's mean and variance or, without them, the running."""
        gamma, beta, pixels = self.to_acc(gamma), self.to_acc(beta), self.group.pixels
        if mean is None or variance is None:
            mean, variance = self.to_acc(norm.running_mean), self.to_acc(norm.running_var)
            return BatchNorm.of(mean, variance, gamma, beta, norm.eps, batch_statistics=False)
        unbiased = variance * (pixels / max(pixels - 1, 1))
        self.statistics += [mean, unbiased]
        return BatchNorm.of(mean, variance, gamma, beta, norm.eps, batch_statistics=True)

    def forward(self, coef: Tensor, mse: Tensor) -> None:
        """Fills in the pair's errors; with gradients wanted, those of ``coef/2`` times them, up to the second ReLU."""
        p, norms, target = self.pair.parameters, self.pair.norms, self.pair.target
        self.weight1 = self.to_acc(p.weight1).flatten(1).contiguous()
        self.weight3 = self.to_acc(p.weight3).flatten(1).contiguous()
        self.linear_moments: LinearMoments | None = None
        if norms[0].batch_statistics:
            assert self.moments is not None
            self.linear_moments = self.stages.linear_moments(self.moments, self.weight1)
        mean, variance = self.linear_moments[:2] if self.linear_moments is not None else (None, None)
        self.norm1 = self.norm(norms[0], mean, variance, p.gamma1, p.beta1)
        self.h1 = self.empty(len(self.weight1))
        bias = self.norm1.beta - self.norm1.scale * self.norm1.mean
        self.stages.linear_relu(self.group.x, self.norm1.scale[:, None] * self.weight1, bias, self.h1)

        self.z, mean, variance = self.stages.conv3x3(self.h1, p.weight2.detach(), norms[1].batch_statistics)
        self.norm2 = self.norm(norms[1], mean, variance, p.gamma2, p.beta2)
        self.d_h2 = self.empty(len(self.weight1)) if self.need_grad else None
        wanted = coef if self.need_grad else None
        self.end = self.stages.end(self.z, self.norm2, self.weight3, target, wanted, self.d_h2)
        torch.div(self.end.squared_error, target[0].numel(), out=mse)

    def backward(self, d_x: Tensor, accumulate: bool) -> tuple[LinearGradients, Projection]:
        """The parameters' gradients; adds the input's to d_x, but for what depends on all pairs of the group."""
        p, norm1, norm2, group = self.pair.parameters, self.norm1, self.norm2, self.group
        _, d_weight3, sum_d, sum_dz = self.end
        assert self.d_h2 is not None
        assert d_weight3 is not None
        assert sum_d is not None
        assert sum_dz is not None
        d_gamma2 = norm2.invstd * sum_dz
        coefficients = norm2.backward_coefficients(sum_d, d_gamma2, group.pixels)
        d_h1, d_weight2 = self.stages.conv3x3_backward(self.h1, p.weight2.detach(), self.z, self.d_h2, coefficients)
        back = (self.pair.outside / group.later * norm1.scale)[:, None] * self.weight1
        d_weight1, d_bias = self.stages.linear_relu_backward(group.x, self.h1, d_h1, back, d_x, accumulate)
        linear = self.stages.linear_norm_backward(norm1, self.weight1, self.linear_moments, d_weight1, d_bias)
        gradients = (linear.d_weight, linear.d_gamma, d_bias, d_weight2, d_gamma2, sum_d, d_weight3)
        finished = (like_parameter(g, x, self.pair.outside) for g, x in zip(gradients, p, strict=True))
        return linear, Projection(*finished)


def like_parameter(gradient: Tensor, parameter: Tensor, factor: float) -> Tensor:
    """``factor * gradient`` in the parameter's shape, strides and (kept) type: autograd takes it without a copy.

    The gradient itself where it is so already and shares no memory.
    """
    gradient = gradient.view(parameter.shape)
    result = torch.empty_like(parameter, dtype=kept_dtype(parameter.dtype))
    as_wanted = result.dtype == gradient.dtype and result.stride() == gradient.stride()
    if factor == 1 and as_wanted and gradient.untyped_storage().nbytes() == result.nbytes:
        return gradient
    return result.copy_(gradient if factor == 1 else gradient * factor)
