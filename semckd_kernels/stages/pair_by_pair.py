"""The engine's work over the steps of one pair at a time: one pair's maps are alive, in memory that the next one uses.

This is the CPU's way, where a pair's maps stay in cache, and the plain implementation's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import attention
from .attention import Allocation, Embeddings
from .backend import Group, MapPart, Norm, Pair, PairResult, kept_dtype
from .interface import Stages
from .pooling import Resolutions, Size, unpool_add_
from .projection import BatchNorm, LinearGradients, LinearMoments, Moments
from .workspace import Workspace


class PairByPair:
    """Implements :class:`~semckd_kernels.stages.backend.Backend`.

    Args:
        stages: the steps of one pair.
        workspace: memory for the maps of a pair.
        acc_dtype: the accumulation type of similarities and attention.
        need_grad: whether gradients are wanted.
    """

    def __init__(self, stages: Stages, workspace: Workspace, acc_dtype: torch.dtype, need_grad: bool) -> None:
        self.stages, self.workspace, self.acc_dtype, self.need_grad = stages, workspace, acc_dtype, need_grad

    def resolutions(
        self, maps: Sequence[Tensor], sizes: Sequence[Sequence[Size]], dtype: torch.dtype
    ) -> list[dict[Size, Tensor]]:
        results = []
        for x, wanted in zip(maps, sizes, strict=True):
            layer = Resolutions(self._rows(x, dtype))
            results.append({size: layer.at(size) for size in (layer.full_size, *wanted)})
        return results

    def _rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A map ``[B, C, h, w]`` as rows ``[B, h, w, C]``; no copy of a channels_last map of that type."""
        x = x.detach().to(dtype)
        rows = x.permute(0, 2, 3, 1)
        if rows.is_contiguous() or not x.is_contiguous():
            return rows.contiguous()
        rows = torch.empty(rows.shape, dtype=dtype, device=x.device)
        self.stages.transpose_(x.flatten(2), rows.flatten(1, 2))
        return rows

    def own_rows(self, maps: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(maps, rows, strict=True)
        return [(own if own.dtype == x.dtype else self._rows(x, x.dtype)).flatten(1) for x, own in pairs]

    def allocate(self, rows: Sequence[Tensor], embedding: Sequence[Tensor], s_layers: int, soft: float) -> Allocation:
        similarities = [self.stages.similarity(x).to(self.acc_dtype) for x in rows]
        return attention.allocate(similarities, Embeddings.stack(embedding, self.acc_dtype), s_layers, soft)

    def loss(self, weight: Tensor, mse: Tensor) -> Tensor:
        return (weight * mse).sum() / (weight.shape[0] * weight.shape[1])

    def allocate_backward(
        self, mse: Tensor, saved: Allocation, embedding: Sequence[Tensor], soft: float
    ) -> tuple[Tensor, list[Tensor]]:
        parameters = Embeddings.stack(embedding, self.acc_dtype)
        d_similarity, gradients = attention.allocate_backward(mse, saved, parameters, soft)
        return d_similarity, [like_parameter(g, p, 1) for g, p in zip(gradients.unstack(), embedding, strict=True)]

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
            self.workspace.reset()
            run = _PairRun(self, group, pair, moments)
            run.forward(alpha[:, pair.q].to(group.acc_dtype) * pair.coefficient, mse[:, pair.q])
            if d_x is None:
                results.append(PairResult(run.statistics, []))
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

    def finish_maps(
        self,
        maps: Sequence[Tensor],
        rows: Sequence[Tensor],
        parts: Sequence[Sequence[MapPart]],
        d_similarity: Tensor,
    ) -> list[Tensor]:
        return [self._finish_map(*one) for one in zip(maps, rows, parts, d_similarity, strict=True)]

    def _finish_map(self, feat: Tensor, rows: Tensor, parts: Sequence[MapPart], d_similarity: Tensor) -> Tensor:
        batch, channels, height, width = feat.shape
        full: Tensor | None = None
        for d_x, size, factor in parts:
            if factor != 1:
                d_x.mul_(factor)
            if full is None and size == (height, width):
                # the finest comes first
                full = d_x
                continue
            if full is None:
                full = torch.zeros((batch, height, width, channels), dtype=self.acc_dtype, device=feat.device)
            unpool_add_(full, d_x)
        assert full is not None
        self.stages.similarity_add_(d_similarity + d_similarity.t(), rows, full.view(batch, -1))
        d_map = full.permute(0, 3, 1, 2)
        kept = torch.empty_like(feat, dtype=kept_dtype(feat.dtype))
        if kept.dtype == d_map.dtype and kept.stride() == d_map.stride():
            return d_map
        if kept.dtype == full.dtype and kept.is_contiguous():
            self.stages.transpose_(full.flatten(1, 2), kept.flatten(2))
            return kept
        return kept.copy_(d_map)


class _PairRun:
    """One pair's way through its projection and back."""

    def __init__(self, backend: PairByPair, group: Group, pair: Pair, moments: Moments | None) -> None:
        self.stages, self.workspace, self.acc_dtype = backend.stages, backend.workspace, group.acc_dtype
        self.group, self.pair, self.moments = group, pair, moments
        self.need_grad = backend.need_grad
        self.statistics: list[Tensor] = []

    def to_acc(self, x: Tensor) -> Tensor:
        return x.detach().to(self.acc_dtype)

    def empty(self, channels: int) -> Tensor:
        """Uninitialised rows at the pair's resolution."""
        x = self.group.x
        return self.workspace.empty((*x.shape[:3], channels), x.dtype)

    def norm(self, norm: Norm, mean: Tensor | None, variance: Tensor | None, gamma: Tensor) -> BatchNorm:
        """A BatchNorm from the batch's mean and variance or, without them, the running."""
        gamma, pixels = self.to_acc(gamma), self.group.pixels
        if mean is None or variance is None:
            mean, variance = self.to_acc(norm.running_mean), self.to_acc(norm.running_var)
            return BatchNorm.of(mean, variance, gamma, norm.eps, batch_statistics=False)
        unbiased = variance * (pixels / max(pixels - 1, 1))
        self.statistics += [mean, unbiased]
        return BatchNorm.of(mean, variance, gamma, norm.eps, batch_statistics=True)

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
        self.norm1 = self.norm(norms[0], mean, variance, p.gamma1)
        self.h1 = self.empty(len(self.weight1))
        bias = self.to_acc(p.beta1) - self.norm1.scale * self.norm1.mean
        self.stages.linear_relu(self.group.x, self.norm1.scale[:, None] * self.weight1, bias, self.h1)

        self.z, mean, variance = self.stages.conv3x3(self.h1, p.weight2.detach(), norms[1].batch_statistics)
        self.norm2 = self.norm(norms[1], mean, variance, p.gamma2)
        self.d_h2 = self.empty(len(self.weight1)) if self.need_grad else None
        norm2, beta2 = self.norm2, self.to_acc(p.beta2)
        wanted = coef if self.need_grad else None
        self.end = self.stages.end(self.z, norm2.mean, norm2.scale, beta2, self.weight3, target, wanted, self.d_h2)
        torch.div(self.end.squared_error, target[0].numel(), out=mse)

    def backward(self, d_x: Tensor, accumulate: bool) -> tuple[LinearGradients, list[Tensor]]:
        """The parameters' gradients; adds the input's to d_x, but for what depends on all pairs of the group."""
        p, norm1, norm2, group = self.pair.parameters, self.norm1, self.norm2, self.group
        _, d_weight3, sum_d, sum_dz = self.end
        assert self.d_h2 is not None
        assert d_weight3 is not None
        assert sum_d is not None
        assert sum_dz is not None
        d_gamma2 = norm2.invstd * sum_dz
        coefficients = norm2.backward_coefficients(sum_d, d_gamma2, group.pixels)
        d_h1, d_weight2 = self.stages.conv3x3_backward(self.h1, p.weight2.detach(), self.z, self.d_h2, *coefficients)
        back = (self.pair.outside / group.later * norm1.scale)[:, None] * self.weight1
        d_weight1, d_bias = self.stages.linear_relu_backward(group.x, self.h1, d_h1, back, d_x, accumulate)
        linear = self.stages.linear_norm_backward(norm1, self.weight1, self.linear_moments, d_weight1, d_bias)
        gradients = (linear.d_weight, linear.d_gamma, d_bias, d_weight2, d_gamma2, sum_d, d_weight3)
        finished = [like_parameter(g, x, self.pair.outside) for g, x in zip(gradients, p, strict=True)]
        return linear, finished


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
