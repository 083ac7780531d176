"""The criterion on the CPU: the operators in ``csrc/ops/``, one call for all pairs of a group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ... import dtypes
from ...stages import attention
from ...stages.attention import Allocation, Embedding, Embeddings
from ...stages.backend import Group, MapPart, PairResult, kept_dtype
from ...stages.pooling import Resolutions, Size, unpool_add_
from ...stages.projection import Projection
from ...stages.records import flatten, split
from ...stages.workspace import gradient_of
from . import convolution


class CpuBackend:
    """Implements :class:`~semckd_kernels.stages.backend.Backend`; the compiled operators must be loaded.

    Args:
        acc_dtype: the accumulation type of similarities and attention.
    """

    def __init__(self, acc_dtype: torch.dtype) -> None:
        self.acc_dtype = acc_dtype

    def resolutions(
        self, maps: Sequence[Tensor], sizes: Sequence[Sequence[Size]], dtype: torch.dtype
    ) -> list[dict[Size, Tensor]]:
        results = []
        for x, wanted in zip(maps, sizes, strict=True):
            layer = Resolutions(_rows(x, dtype))
            results.append({size: layer.at(size) for size in (layer.full_size, *wanted)})
        return results

    def own_rows(self, maps: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(maps, rows, strict=True)
        return [(own if own.dtype == x.dtype else _rows(x, x.dtype)).flatten(1) for x, own in pairs]

    def allocate(
        self, rows: Sequence[Tensor], embedding: Sequence[Embedding], s_layers: int, soft: float
    ) -> Allocation:
        similarities = [torch.ops.semckd_cpu.similarity(x).to(self.acc_dtype) for x in rows]
        self._embeddings = Embeddings.stack(embedding, self.acc_dtype)
        return attention.allocate(similarities, self._embeddings, s_layers, soft)

    def loss(self, weight: Tensor, mse: Tensor) -> Tensor:
        return (weight * mse).sum() / (weight.shape[0] * weight.shape[1])

    def allocate_backward(
        self, mse: Tensor, saved: Allocation, embedding: Sequence[Embedding], soft: float
    ) -> tuple[Tensor, list[Embedding]]:
        d_similarity, gradients = attention.allocate_backward(mse, saved, self._embeddings, soft)
        layers = zip(gradients.unstack(), embedding, strict=True)
        return d_similarity, [Embedding(*map(_like_parameter, *layer)) for layer in layers]

    def chunks(self, groups: Sequence[Group]) -> Iterable[list[Group]]:
        return ([group] for group in groups)

    def run_chunk(self, chunk: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]:
        return [result for group in chunk for result in _run_group(group, alpha.flatten(1), mse.flatten(1))]

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
        # student and teacher may be of different types
        fits = dtypes.acc_dtype(rows.dtype) == full.dtype
        symmetric = d_similarity + d_similarity.t()
        torch.ops.semckd_cpu.similarity_add_(symmetric, rows if fits else rows.to(full.dtype), full.view(batch, -1))
        d_map = full.permute(0, 3, 1, 2)
        kept = torch.empty_like(feat, dtype=kept_dtype(feat.dtype))
        if kept.dtype == d_map.dtype and kept.stride() == d_map.stride():
            return d_map
        if kept.dtype == full.dtype and kept.is_contiguous():
            torch.ops.semckd_cpu.transpose_(full.flatten(1, 2), kept.flatten(2))
            return kept
        return kept.copy_(d_map)


def _like_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=kept_dtype(parameter.dtype)).copy_(gradient)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A map ``[B, C, h, w]`` as rows ``[B, h, w, C]``; no copy of a channels_last map of that type."""
    x = x.detach().to(dtype)
    rows = x.permute(0, 2, 3, 1)
    if rows.is_contiguous() or not x.is_contiguous():
        return rows.contiguous()
    rows = torch.empty(rows.shape, dtype=dtype, device=x.device)
    torch.ops.semckd_cpu.transpose_(x.flatten(2), rows.flatten(1, 2))
    return rows


def _run_group(group: Group, alpha: Tensor, mse: Tensor) -> list[PairResult]:
    """The pairs of one student layer at one resolution, with the gradient of their common input."""
    pairs = group.pairs
    norms = [norm for pair in pairs for norm in pair.norms]
    d_x, accumulate = group.gradient() if group.d_x is not None else (None, False)
    weights2 = [pair.parameters.weight2 for pair in pairs] if d_x is not None else []
    statistics, gradients = torch.ops.semckd_cpu.run_pairs(
        group.x,
        [pair.target for pair in pairs],
        flatten(pair.parameters for pair in pairs),
        [x for norm in norms for x in (norm.running_mean, norm.running_var)],
        [norm.eps for norm in norms],
        [norm.batch_statistics for norm in norms],
        [pair.q for pair in pairs],
        [pair.coefficient for pair in pairs],
        [pair.outside for pair in pairs],
        group.later,
        alpha,
        mse,
        d_x,
        accumulate,
        [gradient_of(weight, kept_dtype(weight.dtype)) for weight in weights2],
        convolution.choose(group.x.dtype) == "vendor",
    )
    results = []
    found, d_parameters = iter(statistics), iter(split(Projection, gradients))
    for pair in pairs:
        own = [next(found) for norm in pair.norms if norm.batch_statistics for _ in range(2)]
        # none where no gradient is wanted
        results.append(PairResult(own, next(d_parameters, None)))
    return results
