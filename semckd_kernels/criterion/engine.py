"""The criterion, with every gradient computed while a pair's maps are at hand.

The loss is a scalar, so its backward is a multiplication by the upstream gradient, and all gradients can be finished in
the forward pass: only they are kept, one chunk's maps are alive at a time, in memory that the next chunk uses again.

The order of work: every layer at the resolutions its pairs need; similarities and attention of all layers; then chunk
by chunk of pairs; then the attention's backward, which needs all pair errors, and the student's maps' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dtypes
from ..stages.attention import Embedding
from ..stages.backend import Backend, Group, InputGradient, MapPart, Norm, Pair
from ..stages.pooling import Size
from ..stages.projection import Projection, pair_dtype
from ..stages.records import flatten


@dataclass(frozen=True)
class Options:
    """What is not a tensor."""

    soft: float
    map_dtype: torch.dtype  # type that maps are computed in, but for few pixels (pair_dtype)
    need_grad: bool

    @property
    def acc_dtype(self) -> torch.dtype:
        """The accumulation type."""
        return dtypes.acc_dtype(self.map_dtype)


@dataclass(frozen=True)
class Inputs:
    """What the criterion is computed from."""

    feat_s: Sequence[Tensor]  # S maps [B, c, h, w] of any strides
    feat_t: Sequence[Tensor]  # T maps
    embedding: Sequence[Embedding]  # of the S + T layers, students first
    projections: Sequence[Projection]  # of the S*T pairs, row-major
    norms: Sequence[tuple[Norm, Norm]]  # of the same


class Result(NamedTuple):
    """What the operator returns; the lists of gradients are empty where none was asked for."""

    loss: Tensor
    weight: Tensor  # [B, S, T]
    pair_mse: Tensor  # [B, S, T]
    statistics: list[Tensor]  # mean and unbiased variance of each BatchNorm that used the batch's
    d_feat_s: list[Tensor]
    d_embedding: list[Tensor]
    d_projection: list[Tensor]


def run(backend: Backend, inputs: Inputs, options: Options) -> Result:
    """Loss, attention, pair errors, batch statistics and all gradients."""
    feat_s, feat_t = inputs.feat_s, inputs.feat_t
    batch, s_layers, t_layers = len(feat_s[0]), len(feat_s), len(feat_t)
    meetings = _meetings(feat_s, feat_t, inputs.norms, options)
    maps = [*feat_s, *feat_t]
    rows = _Rows(backend, maps, meetings, s_layers, options)
    full = rows.full
    allocation = backend.allocate(backend.own_rows(maps, full), inputs.embedding, s_layers, options.soft)

    groups = [_group(meeting, rows, inputs, options) for meeting in meetings]
    acc = options.acc_dtype
    mse = torch.empty((batch, s_layers, t_layers), dtype=acc, device=feat_s[0].device)
    numbers: list[int] = []
    results = []
    for chunk in backend.chunks(groups):
        numbers += [pair.q for group in chunk for pair in group.pairs]
        results += backend.run_chunk(chunk, allocation.weight, mse)
    results = [result for _, result in sorted(zip(numbers, results, strict=True), key=lambda item: item[0])]

    loss = backend.loss(allocation.weight, mse)
    statistics = [x if x.dtype == acc else x.to(acc) for result in results for x in result.statistics]
    if not options.need_grad:
        return Result(loss, allocation.weight, mse, statistics, [], [], [])
    d_similarity, d_embedding = backend.allocate_backward(mse, allocation, inputs.embedding, options.soft)
    parts: list[list[MapPart]] = [[] for _ in feat_s]
    for group in groups:
        d_x = group.gradient()[0].to(acc)
        parts[group.i].append(MapPart(d_x, group.size, group.later))
    own = backend.own_rows(feat_s, full[:s_layers])
    d_feat_s = backend.finish_maps(feat_s, own, parts, d_similarity)
    d_projection = flatten(result.gradients for result in results if result.gradients is not None)
    return Result(loss, allocation.weight, mse, statistics, d_feat_s, flatten(d_embedding), d_projection)


class _Meeting(NamedTuple):
    """A student layer, a resolution, the teacher layers that it meets there, and the type that is computed in."""

    i: int
    size: Size
    teachers: list[int]
    dtype: torch.dtype


def _size(x: Tensor) -> Size:
    return (x.shape[2], x.shape[3])


def _meetings(
    feat_s: Sequence[Tensor], feat_t: Sequence[Tensor], norms: Sequence[tuple[Norm, Norm]], options: Options
) -> list[_Meeting]:
    """All pairs: student layer by student layer, the finest resolution first."""
    meetings = []
    for i, x in enumerate(feat_s):
        own = norms[i * len(feat_t) : (i + 1) * len(feat_t)]
        amplified = any(norm.batch_statistics for pair in own for norm in pair)
        by_size: dict[Size, list[int]] = {}
        for j, y in enumerate(feat_t):
            size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
            by_size.setdefault(size, []).append(j)
        for size, teachers in sorted(by_size.items(), key=lambda item: -item[0][0] * item[0][1]):
            few = pair_dtype(options.map_dtype, len(x) * size[0] * size[1])
            meetings.append(_Meeting(i, size, teachers, few if amplified else options.map_dtype))
    return meetings


class _Rows:
    """Every layer's rows, at the sizes and in the types that its pairs meet in."""

    def __init__(
        self,
        backend: Backend,
        maps: Sequence[Tensor],
        meetings: Sequence[_Meeting],
        s_layers: int,
        options: Options,
    ) -> None:
        self._s_layers = s_layers
        wanted: dict[torch.dtype, list[dict[Size, None]]] = {options.map_dtype: [{} for _ in maps]}
        for meeting in meetings:
            of_type = wanted.setdefault(meeting.dtype, [{} for _ in maps])
            for layer in (meeting.i, *(s_layers + j for j in meeting.teachers)):
                of_type[layer][meeting.size] = None
        self._by_type: dict[torch.dtype, list[dict[Size, Tensor]]] = {}
        # at their own size, in the map type
        self.full: list[Tensor] = []
        for dtype, sizes in wanted.items():
            # other types are made from the rows
            source = [x.permute(0, 3, 1, 2) for x in self.full] if self._by_type else maps
            layers = [n for n, asked in enumerate(sizes) if asked or not self._by_type]
            found = backend.resolutions([source[n] for n in layers], [list(sizes[n]) for n in layers], dtype)
            made = dict(zip(layers, found, strict=True))
            self._by_type[dtype] = [made.get(n, {}) for n in range(len(maps))]
            if len(self._by_type) == 1:
                self.full = [self._by_type[dtype][n][_size(x)] for n, x in enumerate(maps)]

    def student(self, meeting: _Meeting) -> Tensor:
        return self._by_type[meeting.dtype][meeting.i][meeting.size]

    def teacher(self, meeting: _Meeting, j: int) -> Tensor:
        return self._by_type[meeting.dtype][self._s_layers + j][meeting.size]


def _group(meeting: _Meeting, rows: _Rows, inputs: Inputs, options: Options) -> Group:
    s_layers, t_layers = len(inputs.feat_s), len(inputs.feat_t)
    x = rows.student(meeting)
    # a squared error's gradient is alpha times 2/(N*B*S), which fp16 cannot hold: there the factor waits until
    # gradients are finished, but for what pairs that add to one d_x have of it on their own
    waits = x.dtype == torch.float16
    pairs = []
    for j in meeting.teachers:
        q, target = meeting.i * t_layers + j, rows.teacher(meeting, j)
        factor = 2 / (target[0].numel() * len(x) * s_layers)
        now, outside = (1.0, factor) if waits else (factor, 1.0)
        pairs.append(Pair(q, target, inputs.projections[q], inputs.norms[q], now, outside))
    # the largest
    later = max(pair.outside for pair in pairs)
    return Group(meeting.i, meeting.size, x, pairs, later, InputGradient() if options.need_grad else None)
