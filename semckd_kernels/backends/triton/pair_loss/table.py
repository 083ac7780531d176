"""From lists of tensors to the table that the pair-loss kernels read: the host side, free of Triton.

A sample is read as one flat run of memory. That needs both maps of a pair to be dense within a sample and to lie in
the same order, whatever the order is (row-major, channels last) and however far samples lie apart (a slice of a larger
batch, an expanded batch). Where they do not, copies are made that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....layout import packed_strides, sample_order, samples_overlap
from .config import vector_numel

# the columns of the table, all int64; kernels address them by these names. The strides are of samples, in elements;
# `first_tile` and `tiles` are the tiles of one sample that belong to the pair; `pair` is q; an `aligned` pair has every
# sample of every map aligned to 128 bits
COLUMNS = (
    "s",
    "t",
    "d_s",
    "d_t",
    "s_stride",
    "t_stride",
    "d_s_stride",
    "d_t_stride",
    "numel",
    "first_tile",
    "tiles",
    "pair",
    "aligned",
)


def _empty(like: Tensor, strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(like.shape, strides, dtype=like.dtype, device=like.device)


@dataclass
class Pair:
    """One pair as the kernels see it: the maps and the gradients that are asked for share one sample order."""

    s: Tensor  # [B, ...]
    t: Tensor  # [B, ...]
    d_s: Tensor | None = None
    d_t: Tensor | None = None

    @property
    def numel(self) -> int:
        """Elements a sample, N."""
        return self.s.numel() // self.s.shape[0]

    def row(self, q: int, first_tile: int, tiles: int) -> list[int]:
        """This pair's row of the table."""
        maps = (self.s, self.t, self.d_s, self.d_t)
        numel = self.numel
        pointers = [0 if x is None else x.data_ptr() for x in maps]
        # the stride of a single sample is arbitrary and must not decide about alignment
        strides = [numel if x is None or x.shape[0] == 1 else x.stride(0) for x in maps]
        vector = vector_numel(self.s.dtype, self.t.dtype)
        aligned = not any(p % 16 for p in pointers) and not any(n % vector for n in (numel, *strides))
        return [*pointers, *strides, numel, first_tile, tiles, q, int(aligned)]


class Pairs:
    """All pairs of a call in a common order each, and the gradients that the call returns.

    Args:
        s: Q student projections, ``[B, ...]``.
        t: Q teacher maps of the same shapes.
        need_s: allocate ``d_s``.
        need_t: allocate ``d_t``.
        in_place: let ``d_s`` be the student map that is read, ``s`` itself unless a copy had to be made.
    """

    def __init__(
        self,
        s: Sequence[Tensor],
        t: Sequence[Tensor],
        need_s: bool = False,
        need_t: bool = False,
        in_place: bool = False,
    ) -> None:
        self.pairs: list[Pair] = []
        self.d_s: list[Tensor] = []
        self.d_t: list[Tensor] = []
        for s_q, t_q in zip(s, t, strict=True):
            pair = _in_one_order(s_q, t_q, in_place)
            self.pairs.append(pair)
            strides = packed_strides(pair.s)
            if need_s:
                pair.d_s = pair.s if in_place else _empty(s_q, strides)
                self.d_s.append(pair.d_s)
            if need_t:
                pair.d_t = _empty(t_q, strides)
                self.d_t.append(pair.d_t)

    def groups(self) -> list[list[tuple[int, Pair]]]:
        """Pairs, with their numbers, that one launch can serve: those of the same two types."""
        groups: dict[tuple[torch.dtype, torch.dtype], list[tuple[int, Pair]]] = {}
        for q, pair in enumerate(self.pairs):
            groups.setdefault((pair.s.dtype, pair.t.dtype), []).append((q, pair))
        return list(groups.values())


def _in_one_order(s: Tensor, t: Tensor, in_place: bool) -> Pair:
    """Copies what has to be copied."""
    if s.is_contiguous() and t.is_contiguous():
        # nearly every call: spared the look at each dimension
        return Pair(s, t)
    if sample_order(s) is None or (in_place and samples_overlap(s)):
        s = _empty(s, packed_strides(s)).copy_(s)
    if sample_order(t) != sample_order(s):
        t = _empty(t, packed_strides(s)).copy_(t)
    return Pair(s, t)


def tabulate(members: Sequence[tuple[int, Pair]], tile: int) -> tuple[list[int], int]:
    """The table of one launch, row after row, and the tiles of one sample of all its pairs."""
    rows: list[int] = []
    tiles = 0
    for q, pair in members:
        own = -(-pair.numel // tile)
        rows += pair.row(q, tiles, own)
        tiles += own
    return rows, tiles
