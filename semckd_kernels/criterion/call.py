"""The operator's arguments as one record, in the order of its schema; and what they hold, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..stages.attention import Embedding
from ..stages.backend import Norm
from ..stages.projection import Projection
from ..stages.records import split
from .engine import Inputs, Options

T = TypeVar("T")


class Call(NamedTuple):
    """One call of the criterion.

    Attributes:
        feat_s: S maps ``[B, c, h, w]``, of any strides.
        feat_t: T maps.
        embedding: the parameters of each of the S + T layers, students first.
        projection: those of each of the S*T pairs, row-major.
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
        return split(Projection, self.projection)

    @property
    def norms(self) -> list[tuple[Norm, Norm]]:
        """The BatchNorms of each pair."""
        settings = zip(_in_twos(self.running), self.eps, self.batch_statistics, strict=True)
        return _in_twos([Norm(*statistics, eps, flag) for statistics, eps, flag in settings])

    @property
    def inputs(self) -> Inputs:
        """What the engine computes from."""
        return Inputs(self.feat_s, self.feat_t, split(Embedding, self.embedding), self.projections, self.norms)


def _in_twos(items: Sequence[T]) -> list[tuple[T, T]]:
    return list(zip(items[::2], items[1::2], strict=True))
