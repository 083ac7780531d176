"""What the engine asks of a backend: all layers at once, and *chunks* of pairs.

The pairs of one student layer at one resolution are a *group*: they share their input, its moments, and the gradient
they add up in. A chunk is the groups whose maps are alive together: one on the CPU, whose pairs are worked off one by
one in cache; on a GPU as many as fit a byte budget, since there one launch serves all pairs of a chunk. A group may be
divided between chunks.

Maps are *rows*: contiguous tensors ``[B, h, w, C]`` of the *map type*, in which maps are computed. Vectors, small
matrices and sums have the *accumulation type*: fp32, or fp64 for fp64 maps. A group of few pixels has fp64 maps,
whatever the others have (:func:`~semckd_kernels.stages.projection.pair_dtype`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import dtypes
from .attention import Allocation, Embedding
from .pooling import Size
from .projection import Projection


class Norm(NamedTuple):
    """One BatchNorm's settings, and the running statistics that it uses where it does not use the batch's."""

    running_mean: Tensor  # [K]
    running_var: Tensor
    eps: float
    batch_statistics: bool


class Pair(NamedTuple):
    """One pair of layers at its resolution."""

    q: int  # i * T + j
    target: Tensor  # rows [B, h, w, C]
    parameters: Projection
    norms: tuple[Norm, Norm]
    # the gradients that are computed are those of sum_b coefficient*alpha[b]/2 * squared_error[b]: 2/(N*B*S), but 1 for
    # fp16 maps, where squared errors' gradients would underflow
    coefficient: float
    # what finished gradients of parameters are multiplied by
    outside: float


@dataclass
class InputGradient:
    """The gradient that a group's pairs add up in. It takes memory with the first chunk that writes it."""

    rows: Tensor | None = None  # [B, h, w, c] of the group's accumulation type


@dataclass(frozen=True)
class Group:
    """Pairs of one student layer at one resolution."""

    i: int
    size: Size
    x: Tensor  # rows [B, h, w, c]
    pairs: list[Pair]
    # what d_x is multiplied by when it is finished; each pair adds outside/later times its part
    later: float
    d_x: InputGradient | None  # written, or added to where it is there; None where no gradient is wanted

    @property
    def pixels(self) -> int:
        return self.x.shape[0] * self.x.shape[1] * self.x.shape[2]

    @property
    def acc_dtype(self) -> torch.dtype:
        """The accumulation type of this group's pairs."""
        return dtypes.acc_dtype(self.x.dtype)

    def gradient(self) -> tuple[Tensor, bool]:
        """The gradient's rows, and whether an earlier chunk has written them."""
        assert self.d_x is not None
        written = self.d_x.rows is not None
        if self.d_x.rows is None:
            self.d_x.rows = torch.empty(self.x.shape, dtype=self.acc_dtype, device=self.x.device)
        return self.d_x.rows, written


class PairResult(NamedTuple):
    """What one pair gives."""

    statistics: list[Tensor]  # mean and unbiased variance of each BatchNorm that uses the batch's
    gradients: Projection | None  # of the parameters, each like its parameter; None where none is wanted


class MapPart(NamedTuple):
    """The gradient of a student map at one resolution."""

    d_x: Tensor  # rows [B, h, w, c] of the accumulation type; may be overwritten
    size: Size
    factor: float  # what is left to multiply it by


class Backend(Protocol):
    """The criterion's work, on one kind of device."""

    def resolutions(
        self, maps: Sequence[Tensor], sizes: Sequence[Sequence[Size]], dtype: torch.dtype
    ) -> list[dict[Size, Tensor]]:
        """Each map at its own size and average-pooled to others.

        Args:
            maps: ``[B, C, H, W]`` of any strides and types.
            sizes: for each map the sizes it is wanted at.
            dtype: type of the rows.

        Returns:
            For each map its rows by size.
        """
        ...

    def own_rows(self, maps: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Each map's samples ``[B, N]`` in its own type, in the order of its rows.

        Args:
            maps: ``[B, C, H, W]``.
            rows: the same at their own size, in the map type.
        """
        ...

    def allocate(
        self, rows: Sequence[Tensor], embedding: Sequence[Embedding], s_layers: int, soft: float
    ) -> Allocation:
        """The attention from the samples ``[B, N]`` of all layers, students first; see :mod:`.attention`."""
        ...

    def loss(self, weight: Tensor, mse: Tensor) -> Tensor:
        """``1/(B*S) sum alpha*D``, both ``[B, S, T]``."""
        ...

    def allocate_backward(
        self, mse: Tensor, saved: Allocation, embedding: Sequence[Embedding], soft: float
    ) -> tuple[Tensor, list[Embedding]]:
        """Gradients of the student's similarities ``[S, B, B]``, and of the parameters, each like its parameter."""
        ...

    def chunks(self, groups: Sequence[Group]) -> Iterable[list[Group]]:
        """The chunks that all pairs are worked off in."""
        ...

    def run_chunk(self, chunk: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]:
        """All that the pairs of a chunk do, forward and backward.

        Args:
            chunk: the groups; their ``d_x`` are written, or added to.
            alpha: ``[B, S, T]``, the attention.
            mse: ``[B, S, T]``, the chunk's pair errors are written.

        Returns:
            One result a pair, group by group.
        """
        ...

    def finish_maps(
        self,
        maps: Sequence[Tensor],
        rows: Sequence[Tensor],
        parts: Sequence[Sequence[MapPart]],
        d_similarity: Tensor,
    ) -> list[Tensor]:
        """The gradients of the student's maps: of their resolutions, and through their similarities.

        Args:
            maps: ``[B, c, h, w]``.
            rows: their samples ``[B, N]``, from :meth:`own_rows`.
            parts: for each map its resolutions, the finest first.
            d_similarity: ``[S, B, B]``.

        Returns:
            Each like its map; fp32 for fp16 maps.
        """
        ...


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type a gradient is kept in until the upstream gradient has scaled it."""
    # fp16 would underflow
    return torch.float32 if dtype == torch.float16 else dtype
