"""The criterion, pair by pair, with every gradient computed while the pair's maps are at hand.

The loss is a scalar, so its backward is a multiplication by the upstream gradient, and all gradients can be finished in
the forward pass: only they are kept, one pair's maps are alive at a time, in memory that the next pair uses again.

The order of work: similarities and attention of all layers; then student layer by student layer, resolution by
resolution (pairs of one layer and resolution share their input, its moments, and the gradient they add up in), pair by
pair; then the attention's backward, which needs all pair errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Embeddings, allocate, allocate_backward
from .pooling import Resolutions, Size, unpool_add_
from .projection import BatchNorm, LinearGradients, LinearMoments, Moments, Projection, pair_dtype
from .stages import Stages
from .streams import SideStreams
from .workspace import Workspace


@dataclass(frozen=True)
class Options:
    """What is not a tensor."""

    soft: float
    eps: Sequence[float]  # of the two BatchNorms of each pair
    batch_statistics: Sequence[bool]  # the same: statistics of the batch, or running ones
    map_dtype: torch.dtype  # type that maps are computed in, but for few pixels (pair_dtype)
    need_grad: bool


class Result(NamedTuple):
    """What the operator returns; the lists of gradients are empty where none was asked for."""

    loss: Tensor
    weight: Tensor  # [B, S, T]
    pair_mse: Tensor  # [B, S, T]
    statistics: list[Tensor]  # mean and unbiased variance of each BatchNorm that used the batch's
    d_feat_s: list[Tensor]
    d_embedding: list[Tensor]
    d_projection: list[Tensor]


class _Group(NamedTuple):
    """The pairs of one student layer at one resolution."""

    i: int
    size: Size
    teachers: list[int]


@dataclass
class _GroupResult:
    d_x: Tensor | None  # rows [B, h, w, c], wide
    size: Size
    factor: float  # what is left to multiply d_x by


def run(
    stages: Stages,
    workspace: Workspace,
    feat_s: Sequence[Tensor],
    feat_t: Sequence[Tensor],
    embedding: Sequence[Tensor],
    projection: Sequence[Tensor],
    running: Sequence[Tensor],
    options: Options,
) -> Result:
    """Loss, attention, pair errors, batch statistics and all gradients.

    Args:
        stages: a backend's steps.
        workspace: memory for the maps of a pair.
        feat_s, feat_t: S and T maps ``[B, C, h, w]``, of any strides.
        embedding: four parameters for each of the S + T layers, students first.
        projection: seven parameters for each of the S*T pairs, row-major.
        running: ``running_mean, running_var`` of both BatchNorms of each pair; read where the batch's are not used.
        options: the rest.
    """
    return _Run(stages, workspace, feat_s, feat_t, projection, running, options)(embedding)


class _Run:
    """One call: the layers' maps, and the results as they come in."""

    def __init__(
        self,
        stages: Stages,
        workspace: Workspace,
        feat_s: Sequence[Tensor],
        feat_t: Sequence[Tensor],
        projection: Sequence[Tensor],
        running: Sequence[Tensor],
        options: Options,
    ) -> None:
        self.stages, self.workspace, self.options = stages, workspace, options
        self.feat_s, self.feat_t = feat_s, feat_t
        self.wide = torch.promote_types(options.map_dtype, torch.float32)
        self.batch, self.s_layers, self.t_layers = len(feat_s[0]), len(feat_s), len(feat_t)
        self.student = [Resolutions(self.rows(x, options.map_dtype)) for x in feat_s]
        self.teacher = [Resolutions(self.rows(x, options.map_dtype)) for x in feat_t]
        self.pairs = [Projection(*projection[q : q + 7]) for q in range(0, len(projection), 7)]
        self.running = running
        pairs = self.s_layers * self.t_layers
        self.mse = feat_s[0].new_empty((pairs, self.batch), dtype=self.wide)
        self.statistics: list[tuple[Tensor, ...]] = [()] * pairs
        self.d_projection: list[list[Tensor]] = [[]] * pairs

    def __call__(self, embedding: Sequence[Tensor]) -> Result:
        batch, s_layers, t_layers = self.batch, self.s_layers, self.t_layers
        embeddings = Embeddings.stack(embedding, self.wide)
        layers = zip((*self.feat_s, *self.feat_t), (*self.student, *self.teacher), strict=True)
        similarities = [self.stages.similarity(self.flat_rows(x, maps)).to(self.wide) for x, maps in layers]
        allocation = allocate(similarities, embeddings, s_layers, self.options.soft)
        results = self.run_pairs(allocation.weight)
        mse = self.mse.t().reshape(batch, s_layers, t_layers).contiguous()
        loss = (allocation.weight * mse).sum() / (batch * s_layers)
        statistics = [x for pair in self.statistics for x in pair]
        if not self.options.need_grad:
            return Result(loss, allocation.weight, mse, statistics, [], [], [])
        d_similarity, d_embeddings = allocate_backward(mse, allocation, embeddings, self.options.soft)
        d_embedding = [like_parameter(g, p, 1) for g, p in zip(d_embeddings.unstack(), embedding, strict=True)]
        d_feat_s = [self.finish_map(i, results[i], d_similarity[i]) for i in range(s_layers)]
        d_projection = [x for pair in self.d_projection for x in pair]
        return Result(loss, allocation.weight, mse, statistics, d_feat_s, d_embedding, d_projection)

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A map ``[B, C, h, w]`` as rows ``[B, h, w, C]``; no copy of a channels_last map of that type."""
        x = x.detach().to(dtype)
        rows = x.permute(0, 2, 3, 1)
        if rows.is_contiguous() or not x.is_contiguous():
            return rows.contiguous()
        rows = torch.empty(rows.shape, dtype=dtype, device=x.device)
        self.stages.transpose_(x.flatten(2), rows.flatten(1, 2))
        return rows

    def flat_rows(self, x: Tensor, maps: Resolutions) -> Tensor:
        """A layer's samples ``[B, N]`` in its own type, in the order of its rows."""
        own = maps.at(maps.full_size)
        return (own if own.dtype == x.dtype else self.rows(x, x.dtype)).flatten(1)

    def groups(self, i: int) -> list[_Group]:
        """Student layer i's pairs, by resolution, the finest first."""
        by_size: dict[Size, list[int]] = {}
        full = self.student[i].full_size
        for j, teacher in enumerate(self.teacher):
            size = (min(full[0], teacher.full_size[0]), min(full[1], teacher.full_size[1]))
            by_size.setdefault(size, []).append(j)
        finest_first = sorted(by_size.items(), key=lambda item: -item[0][0] * item[0][1])
        return [_Group(i, size, teachers) for size, teachers in finest_first]

    def dtype_of(self, group: _Group) -> torch.dtype:
        """The type that a group's pairs are computed in."""
        first, last = (2 * (group.i * self.t_layers + j) for j in (0, self.t_layers))
        amplified = any(self.options.batch_statistics[first:last])
        pixels = self.batch * group.size[0] * group.size[1]
        return pair_dtype(self.options.map_dtype, pixels) if amplified else self.options.map_dtype

    def run_pairs(self, alpha: Tensor) -> list[list[_GroupResult]]:
        """All pairs; for each student layer the gradients of its resolutions."""
        groups = [group for i in range(self.s_layers) for group in self.groups(i)]
        inputs = []
        for group in groups:
            # made before the streams part: pairs of several groups read them
            dtype = self.dtype_of(group)
            x = self.student[group.i].at(group.size, dtype)
            inputs.append((x, [self.teacher[j].at(group.size, dtype) for j in group.teachers]))
        results: list[list[_GroupResult]] = [[] for _ in range(self.s_layers)]
        with SideStreams(alpha.device) as streams:
            for n, (group, (x, targets)) in enumerate(zip(groups, inputs, strict=True)):
                with streams.take(n):
                    results[group.i].append(self.run_group(group, x, targets, alpha))
        return results

    def run_group(self, group: _Group, x: Tensor, targets: Sequence[Tensor], alpha: Tensor) -> _GroupResult:
        """The pairs of one student layer at one resolution, with the gradient of their common input."""
        pixels = x.shape[0] * x.shape[1] * x.shape[2]
        pairs = [group.i * self.t_layers + j for j in group.teachers]
        moments = None
        if any(self.options.batch_statistics[2 * q] for q in pairs):
            moments = Moments(*self.stages.moments(x))
        # a squared error's gradient is alpha times 2/(N*B*S), which fp16 cannot hold: there the factor waits until
        # gradients are finished, but for what pairs that add to one d_x have of it on their own
        waits = x.dtype == torch.float16
        smallest = min(target[0].numel() for target in targets)
        later = 2 / (smallest * self.batch * self.s_layers) if waits else 1.0
        wide = torch.promote_types(x.dtype, torch.float32)
        d_x = torch.empty(x.shape, dtype=wide, device=x.device) if self.options.need_grad else None
        matrix = constant = None
        for n, (j, q, target) in enumerate(zip(group.teachers, pairs, targets, strict=True)):
            self.workspace.reset()
            factor = 2 / (target[0].numel() * self.batch * self.s_layers)
            pair = _Pair(self, q, x, target, moments)
            pair.forward(alpha[:, group.i, j].to(wide) * (1 if waits else factor))
            if d_x is None:
                continue
            outside = factor if waits else 1.0
            linear = pair.backward(d_x, n > 0, outside, outside / later)
            if linear.matrix is not None and linear.constant is not None:
                if outside != later:
                    linear.matrix.mul_(outside / later)
                    linear.constant.mul_(outside / later)
                matrix = linear.matrix if matrix is None else matrix.add_(linear.matrix)
                constant = linear.constant if constant is None else constant.add_(linear.constant)
        if d_x is not None and moments is not None and matrix is not None and constant is not None:
            self.stages.linear_add_(x, matrix / -pixels, (matrix @ moments.mean - constant) / pixels, d_x)
        return _GroupResult(d_x if d_x is None else d_x.to(self.wide), group.size, later)

    def finish_map(self, i: int, results: Sequence[_GroupResult], d_similarity: Tensor) -> Tensor:
        """The gradient of student map i: of its resolutions, and through its similarities."""
        full: Tensor | None = None
        for result in results:
            assert result.d_x is not None
            if result.factor != 1:
                result.d_x.mul_(result.factor)
            if full is None:
                # the finest comes first
                full = result.d_x
                if result.size != self.student[i].full_size:
                    full = torch.zeros(
                        self.student[i].at(self.student[i].full_size).shape, dtype=self.wide, device=full.device
                    )
                    unpool_add_(full, result.d_x)
            else:
                unpool_add_(full, result.d_x)
            result.d_x = None
        assert full is not None
        flat = self.flat_rows(self.feat_s[i], self.student[i])
        self.stages.similarity_add_(d_similarity + d_similarity.t(), flat, full.view(self.batch, -1))
        d_map = full.permute(0, 3, 1, 2)
        feat = self.feat_s[i]
        # fp16 would underflow before the upstream gradient has scaled it
        kept = torch.empty_like(feat, dtype=kept_dtype(feat.dtype))
        if kept.dtype == d_map.dtype and kept.stride() == d_map.stride():
            return d_map
        if kept.dtype == full.dtype and kept.is_contiguous():
            self.stages.transpose_(full.flatten(1, 2), kept.flatten(2))
            return kept
        return kept.copy_(d_map)


class _Pair:
    """One pair's way through its projection and back."""

    def __init__(self, run: _Run, q: int, x: Tensor, target: Tensor, moments: Moments | None) -> None:
        self.run, self.q, self.x, self.target, self.moments = run, q, x, target, moments
        self.stages = run.stages
        self.parameters = run.pairs[q]
        self.pixels = x.shape[0] * x.shape[1] * x.shape[2]

    def wide(self, x: Tensor) -> Tensor:
        return x.detach().to(torch.promote_types(self.x.dtype, torch.float32))

    def empty(self, channels: int) -> Tensor:
        """Uninitialised rows at the pair's resolution."""
        return self.run.workspace.empty((*self.x.shape[:3], channels), self.x.dtype)

    def norm(self, which: int, mean: Tensor | None, variance: Tensor | None, gamma: Tensor) -> BatchNorm:
        """The pair's first or second BatchNorm, from the batch's mean and variance or, without them, the running."""
        n = 2 * self.q + which
        gamma, eps = self.wide(gamma), self.run.options.eps[n]
        if mean is None or variance is None:
            mean, variance = (self.wide(x) for x in self.run.running[2 * n : 2 * n + 2])
            return BatchNorm.of(mean, variance, gamma, eps, batch_statistics=False)
        unbiased = variance * (self.pixels / max(self.pixels - 1, 1))
        kept = (x.to(self.run.wide) for x in (mean, unbiased))
        self.run.statistics[self.q] = (*self.run.statistics[self.q], *kept)
        return BatchNorm.of(mean, variance, gamma, eps, batch_statistics=True)

    def forward(self, coef: Tensor) -> None:
        """Fills in the pair's errors; with gradients wanted, those of ``coef/2`` times them, up to the second ReLU."""
        run, options, p = self.run, self.run.options, self.parameters
        self.weight1 = self.wide(p.weight1).flatten(1).contiguous()
        self.weight3 = self.wide(p.weight3).flatten(1).contiguous()
        self.linear_moments: LinearMoments | None = None
        if options.batch_statistics[2 * self.q]:
            assert self.moments is not None
            self.linear_moments = self.stages.linear_moments(self.moments, self.weight1)
        mean, variance = self.linear_moments[:2] if self.linear_moments is not None else (None, None)
        self.norm1 = self.norm(0, mean, variance, p.gamma1)
        self.h1 = self.empty(len(self.weight1))
        bias = self.wide(p.beta1) - self.norm1.scale * self.norm1.mean
        self.stages.linear_relu(self.x, self.norm1.scale[:, None] * self.weight1, bias, self.h1)

        self.z, mean, variance = self.stages.conv3x3(
            self.h1, p.weight2.detach(), options.batch_statistics[2 * self.q + 1]
        )
        self.norm2 = self.norm(1, mean, variance, p.gamma2)
        self.d_h2 = self.empty(len(self.weight1)) if options.need_grad else None
        norm2, beta2 = self.norm2, self.wide(p.beta2)
        wanted = coef if options.need_grad else None
        self.end = self.stages.end(self.z, norm2.mean, norm2.scale, beta2, self.weight3, self.target, wanted, self.d_h2)
        torch.div(self.end.squared_error, self.target[0].numel(), out=run.mse[self.q])

    def backward(self, d_x: Tensor, accumulate: bool, factor: float, factor_x: float) -> LinearGradients:
        """Keeps ``factor`` times the parameters' gradients, and adds ``factor_x`` times the input's to d_x."""
        p, norm1, norm2 = self.parameters, self.norm1, self.norm2
        _, d_weight3, sum_d, sum_dz = self.end
        assert self.d_h2 is not None
        assert d_weight3 is not None
        assert sum_d is not None
        assert sum_dz is not None
        d_gamma2 = norm2.invstd * sum_dz
        coefficients = norm2.backward_coefficients(sum_d, d_gamma2, self.pixels)
        d_h1, d_weight2 = self.stages.conv3x3_backward(self.h1, p.weight2.detach(), self.z, self.d_h2, *coefficients)
        back = (factor_x * norm1.scale)[:, None] * self.weight1
        d_weight1, d_bias = self.stages.linear_relu_backward(self.x, self.h1, d_h1, back, d_x, accumulate)
        linear = self.stages.linear_norm_backward(norm1, self.weight1, self.linear_moments, d_weight1, d_bias)
        gradients = (linear.d_weight, linear.d_gamma, d_bias, d_weight2, d_gamma2, sum_d, d_weight3)
        self.run.d_projection[self.q] = [
            like_parameter(g, parameter, factor) for g, parameter in zip(gradients, p, strict=True)
        ]
        return linear


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type a gradient is kept in until the upstream gradient has scaled it."""
    return torch.float32 if dtype == torch.float16 else dtype


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
