"""The operator's arguments as one record, in the order of its schema; and what they hold, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..stages.backend import Norm
from ..stages.projection import Projection
from .engine import Inputs, Options

_PROJECTION = len(Projection._fields)


class Call(NamedTuple):
    """One call of the criterion.

    Attributes:
        feat_s: S maps ``[B, c, h, w]``, of any strides.
        feat_t: T maps.
        embedding: four parameters for each of the S + T layers, students first.
        projection: seven parameters for each of the S*T pairs, row-major.
        running: ``running_mean, running_var`` of both BatchNorms of each pair.
        soft: temperature of the attention.
        eps: of both BatchNorms of each pair.
        batch_statistics: the same: whether they use the batch's statistics, or the running ones.
        map_dtype: type that maps are computed in.
        need_grad: whether gradients are wanted.
        backend: ``"cpu"`` or ``"triton"``.
    """

    feat_s: Sequence[Tensor]
    feat_t: Sequence[Tensor]
    embedding: Sequence[Tensor]
    projection: Sequence[Tensor]
    running: Sequence[Tensor]
    soft: float
    eps: Sequence[float]
    batch_statistics: Sequence[bool]
    map_dtype: torch.dtype
    need_grad: bool
    backend: str

    @property
    def options(self) -> Options:
        """What is not a tensor."""
        return Options(self.soft, self.map_dtype, self.need_grad)

    @property
    def projections(self) -> list[Projection]:
        """The parameters of each pair."""
        return [Projection(*self.projection[n : n + _PROJECTION]) for n in range(0, len(self.projection), _PROJECTION)]

    @property
    def inputs(self) -> Inputs:
        """What the engine computes from."""
        settings = zip(self.running[::2], self.running[1::2], self.eps, self.batch_statistics, strict=True)
        norms = [Norm(*of) for of in settings]
        pairs = list(zip(norms[::2], norms[1::2], strict=True))
        return Inputs(self.feat_s, self.feat_t, self.embedding, self.projections, pairs)
