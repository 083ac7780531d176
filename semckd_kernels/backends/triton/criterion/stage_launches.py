"""The grouped kernels' launches: which words a row has, how many programs, which tiles. One method a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..launch import TYPES, Extra, Word, Work, tickets
from .arena import Arena
from .batch_norm_kernels import d_z_kernel, mean_kernel, norm_kernel
from .config import (
    ERRORS_BLOCK,
    MERGE_BLOCK,
    STATISTICS_PROGRAMS,
    SUM_BLOCK,
    SUM_GROUP,
    SUM_WARPS,
    ProductTile,
    algebra_blocks,
    epilogue_tile,
    pixels_tile,
    row_tile,
    rows_tile,
    split_pixels,
)
from .linear_kernels import covariance_kernel, d_x_kernel, linear_d_weight_kernel, linear_kernel
from .linear_norm_kernels import fold_kernel, input_terms_kernel, linear_norm_backward_kernel
from .pair_run import GroupRun
from .projection_end_kernels import end_d_h_kernel, end_d_weight_kernel, end_fwd_kernel, errors_kernel
from .settings import Settings, blocks, options
from .sum_kernels import sum_slots_kernel


def _tiles(n: int, block: int) -> int:
    return -(-n // block)


class StageLaunches:
    """Collects the launches of a chunk's stages.

    Args:
        settings: of the call.
        groups: the chunk.
    """

    def __init__(self, settings: Settings, groups: Sequence[GroupRun]) -> None:
        self.settings, self.groups = settings, groups
        self.pairs = [pair for group in groups for pair in group.pairs]
        self.launches = settings.launches(settings.device)
        self.arena = Arena(settings.device)
        self._sums: list[tuple[int, Word, int, int, float]] = []
        # of all pairs, since they share launches
        self.c, self.C = max(group.input.c for group in groups), max(pair.C for pair in self.pairs)
        self.K = 2 * self.C
        vector = settings.vector([n for pair in self.pairs for n in (pair.c, pair.C)])
        self.types = settings.types(vector)
        self.tiling = settings.map_dtype, settings.arch, vector > 1
        self.acc = {"ACC": TYPES[settings.acc_dtype], "VECTOR": vector}

    def run(self) -> None:
        """Launches what has been collected; scratch memory of these launches is free again behind them."""
        self.launches.run()
        self.arena = Arena(self.settings.device)

    def _product(self, kernel: Any, work: Sequence[Work], tile: ProductTile, **constants: Any) -> None:
        self.launches.add(kernel, work, {**self.types, **constants, **blocks(tile)}, options(tile))

    def _slots(self, total: int, inner: int, out: Word, divisor: float = 1.0) -> int:
        """Room for slots that :meth:`_sum` will add up."""
        slots = self.arena.take(self.settings.acc_dtype, total, inner)
        self._sums.append((slots, out, total, inner, divisor))
        return slots

    def _sum(self) -> None:
        """Adds up all slots so far."""
        block_r, block_i = SUM_BLOCK
        work = []
        for slots, out, total, inner, divisor in self._sums:
            groups, tiles = _tiles(total, SUM_GROUP), _tiles(inner, block_i)
            again: tuple[Word | Extra, ...] = (0, total, inner, SUM_GROUP, 1, 0)
            if groups > 1:
                partial = self.arena.take(self.settings.acc_dtype, groups, inner)
                again = (partial, total, inner, SUM_GROUP, groups, tickets(tiles))
            work.append(Work(groups * tiles, (slots, out, *again, divisor)))
        vector = 1 if any(inner % 4 for _, _, _, inner, _ in self._sums) else 4
        constants = {"ACC": self.acc["ACC"], "VECTOR": vector, "BLOCK_R": block_r, "BLOCK_I": block_i}
        self.launches.add(sum_slots_kernel, work, constants, {"num_warps": SUM_WARPS, "num_stages": 1})
        self._sums = []

    def _statistics(
        self, kernel: Any, maps: Sequence[tuple[Tensor, Word, bool, tuple[Word, ...]]], widest: int
    ) -> None:
        """A pass over maps that ends in their channels' statistics.

        Args:
            maps: rows, where their mean goes, whether to pass over them at all, and further words.
            widest: the most channels.
        """
        tile = row_tile(widest, self.settings.map_dtype, self.settings.arch)
        take, acc = self.arena.take, self.settings.acc_dtype
        channels = [x.shape[-1] for x, *_ in maps]
        pixels = [x.numel() // c for (x, *_), c in zip(maps, channels, strict=True)]
        tiles = [_tiles(c, tile.block_c) for c in channels]
        lengths = split_pixels(list(zip(pixels, tiles, channels, strict=True)), tile.block_p, STATISTICS_PROGRAMS)
        work = []
        for (x, mean, wanted, more), c, p, t, length in zip(maps, channels, pixels, tiles, lengths, strict=True):
            runs = _tiles(p, length) if wanted else 1
            slots = take(acc, runs, c), take(acc, runs, c)
            work.append(Work(runs * t, (x, *slots, mean, c, p, length, runs, tickets(t), *more)))
        constants = {
            "BLOCK_P": tile.block_p,
            "BLOCK_C": tile.block_c,
            "BLOCK_R": MERGE_BLOCK,
            "STAGES": tile.num_stages,
        }
        self.launches.add(kernel, work, {**self.types, **constants}, {"num_warps": tile.num_warps, "num_stages": 1})

    def moments(self) -> None:
        """Mean and covariance of each input whose pairs ask for it."""
        wanted = [group.input for group in self.groups if group.from_batch]
        if not wanted:
            return
        self._statistics(mean_kernel, [(of.x, of.mean, True, ()) for of in wanted], self.c)
        # the operands are differences, of the accumulation type
        tile = pixels_tile(self.c, self.c, self.settings.acc_dtype, *self.tiling[1:])
        tiles = [_tiles(of.c, tile.block_m) * _tiles(of.c, tile.block_n) for of in wanted]
        lengths = split_pixels([(of.pixels, t, of.c) for of, t in zip(wanted, tiles, strict=True)], tile.block_k)
        work = []
        for of, t, length in zip(wanted, tiles, lengths, strict=True):
            splits = _tiles(of.pixels, length)
            # differences are made so much smaller by a power of two that a sum of squares overflows only if their mean
            # does; fp64 has range enough, and its divisor is an integer, which is exact
            has_range = self.settings.map_dtype == torch.float64
            shrink = 1.0 if has_range else 2.0 ** -math.ceil(math.log2(of.pixels) / 2)
            slots = self._slots(splits, of.c * of.c, of.covariance, of.pixels * shrink**2)
            work.append(Work(splits * t, (of.x, of.mean, slots, of.pixels, length, of.c, shrink)))
        self._product(covariance_kernel, work, tile)
        self._sum()

    def fold(self) -> None:
        """The first BatchNorm into the first convolution."""
        block_m, block_n, block_k = algebra_blocks(self.settings.acc_dtype)
        work = []
        for pair in self.pairs:
            norm, of = pair.norm1, pair.of
            given = (pair.weight1, norm.gamma, norm.beta, of.mean, of.covariance, *norm.running)
            out = (
                pair.with_input,
                norm.mean,
                norm.unbiased,
                norm.invstd,
                norm.scale,
                pair.folded,
                pair.bias,
                pair.back,
            )
            sizes = (pair.K, pair.c, pair.pixels, norm.eps, pair.factor_x, int(norm.from_batch))
            work.append(Work(_tiles(pair.K, block_m), (*given, *out, *sizes)))
        constants = {**self.types, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
        self.launches.add(fold_kernel, work, constants, {"num_warps": 4, "num_stages": 1})

    def linear_relu(self) -> None:
        """The first convolution, BatchNorm and ReLU."""
        tile = rows_tile(self.K, self.c, *self.tiling)
        work = [
            Work(
                _tiles(pair.pixels, tile.block_m) * _tiles(pair.K, tile.block_n),
                (pair.of.x, pair.folded, pair.bias, pair.h1, pair.pixels, pair.c, pair.K),
            )
            for pair in self.pairs
        ]
        self._product(linear_kernel, work, tile, PRECISION=self.settings.precision)

    def norm2(self) -> None:
        """The second BatchNorm's statistics and vectors."""
        maps = []
        for pair in self.pairs:
            norm = pair.norm2
            more = (norm.gamma, norm.invstd, norm.scale, norm.unbiased, *norm.running, int(norm.from_batch), norm.eps)
            maps.append((pair.z, norm.mean, norm.from_batch, more))
        self._statistics(norm_kernel, maps, self.K)

    def end(self, alpha: Tensor, mse: Tensor) -> None:
        """Second BatchNorm, ReLU, last convolution, errors; with gradients, back to behind the second convolution."""
        settings = self.settings
        tile = rows_tile(self.C, self.K, *self.tiling, computed=True)
        forward, errors = [], []
        for pair in self.pairs:
            norm, q = pair.norm2, pair.pair.q
            tiles = _tiles(pair.C, tile.block_n)
            slots = self.arena.take(settings.acc_dtype, pair.pixels, tiles)
            given = (pair.z, norm.mean, norm.scale, norm.beta, pair.weight3, pair.pair.target)
            r: Word = pair.r if settings.need_grad else 0
            programs = _tiles(pair.pixels, tile.block_m) * tiles
            forward.append(Work(programs, (*given, r, slots, pair.pixels, pair.K, pair.C)))
            count, numel = pair.pixels_of_one * tiles, pair.pixels_of_one * pair.C
            errors.append(Work(len(mse), (slots, mse, count, mse[0].numel(), q, numel)))
        self._product(end_fwd_kernel, forward, tile, PRECISION=settings.precision, KEEP=settings.need_grad)
        constants = {"ACC": self.acc["ACC"], "BLOCK": ERRORS_BLOCK}
        self.launches.add(errors_kernel, errors, constants, {"num_warps": SUM_WARPS, "num_stages": 1})
        if settings.need_grad:
            self._end_d_h(alpha)
            self._end_d_weight(alpha)
            self._sum()

    def _end_d_h(self, alpha: Tensor) -> None:
        tile = epilogue_tile(self.K, self.C, *self.tiling)
        work = []
        for pair in self.pairs:
            norm, row_tiles = pair.norm2, _tiles(pair.pixels, tile.block_m)
            sums = pair.gradients.written.beta2, pair.sum_dz
            slots = (self._slots(row_tiles, pair.K, out) for out in sums)
            maps = (pair.r, pair.weight3_back, pair.z, norm.mean, norm.scale, norm.beta, alpha, pair.d_h2)
            sizes = (pair.pixels, pair.K, pair.C, pair.pixels_of_one)
            coef = (alpha[0].numel(), pair.pair.q, float(pair.pair.coefficient))
            work.append(Work(row_tiles * _tiles(pair.K, tile.block_n), (*maps, *slots, *sizes, *coef)))
        self._product(end_d_h_kernel, work, tile, PRECISION=self.settings.precision)

    def _end_d_weight(self, alpha: Tensor) -> None:
        tile, lengths, tiles = self._over_pixels(self.K, self.C, [(pair.K, pair.C) for pair in self.pairs])
        work = []
        for pair, length, t in zip(self.pairs, lengths, tiles, strict=True):
            norm, splits = pair.norm2, _tiles(pair.pixels, length)
            slots = self._slots(splits, pair.C * pair.K, pair.gradients.written.weight3)
            maps = (pair.z, norm.mean, norm.scale, norm.beta, alpha, pair.r, slots)
            sizes = (pair.pixels, length, pair.K, pair.C, pair.pixels_of_one)
            coef = (alpha[0].numel(), pair.pair.q, float(pair.pair.coefficient))
            work.append(Work(splits * t, (*maps, *sizes, *coef)))
        self._product(end_d_weight_kernel, work, tile, PRECISION=self.settings.precision)

    def _over_pixels(
        self, m: int, n: int, shapes: Sequence[tuple[int, int]]
    ) -> tuple[ProductTile, list[int], list[int]]:
        """Tile, pixels a split and programs a split of products ``[m, n]`` that sum over the pixels of each pair."""
        tile = pixels_tile(m, n, *self.tiling)
        tiles = [_tiles(a, tile.block_m) * _tiles(b, tile.block_n) for a, b in shapes]
        sums = zip(self.pairs, tiles, shapes, strict=True)
        return tile, split_pixels([(pair.pixels, t, max(shape)) for pair, t, shape in sums], tile.block_k), tiles

    def d_z(self) -> None:
        """The second BatchNorm's backward."""
        tile = row_tile(self.K, self.settings.map_dtype, self.settings.arch)
        work = []
        for pair in self.pairs:
            norm, written = pair.norm2, pair.gradients.written
            vectors = (written.beta2, pair.sum_dz, norm.mean, norm.invstd, norm.scale, written.gamma2)
            sizes = (pair.pixels, pair.K, float(pair.d_z_factor), int(norm.from_batch))
            programs = _tiles(pair.pixels, tile.block_p) * _tiles(pair.K, tile.block_c)
            work.append(Work(programs, (pair.d_h2, pair.z, *vectors, *sizes)))
        constants = {**self.types, "BLOCK_P": tile.block_p, "BLOCK_C": tile.block_c}
        self.launches.add(d_z_kernel, work, constants, {"num_warps": tile.num_warps, "num_stages": 1})

    def linear_backward(self) -> None:
        """The first convolution's, BatchNorm's and ReLU's backward, to parameters and input."""
        tile, lengths, tiles = self._over_pixels(self.K, self.c, [(pair.K, pair.c) for pair in self.pairs])
        work = []
        for pair, length, t in zip(self.pairs, lengths, tiles, strict=True):
            splits, written = _tiles(pair.pixels, length), pair.gradients.written
            slots = self._slots(splits, pair.K * pair.c, written.weight1), self._slots(splits, pair.K, written.beta1)
            maps = (pair.d_h1, pair.h1, pair.of.x)
            work.append(Work(splits * t, (*maps, *slots, pair.pixels, length, pair.K, pair.c)))
        self._product(linear_d_weight_kernel, work, tile, PRECISION=self.settings.precision)
        self._sum()
        self._linear_norm_backward()
        self._input_terms()
        self._d_x()

    def _linear_norm_backward(self) -> None:
        block_m, block_n, _ = algebra_blocks(self.settings.acc_dtype)
        work = []
        for pair in self.pairs:
            norm, written = pair.norm1, pair.gradients.written
            given = (written.weight1, written.beta1, pair.weight1, pair.with_input, pair.of.mean)
            vectors = (norm.mean, norm.invstd, norm.scale, written.gamma1, pair.q, pair.e)
            sizes = (pair.K, pair.c, pair.pixels, float(pair.factor_x), int(norm.from_batch))
            work.append(Work(_tiles(pair.K, block_m), (*given, *vectors, *sizes)))
        constants = {**self.acc, "BLOCK_M": block_m, "BLOCK_N": block_n}
        self.launches.add(linear_norm_backward_kernel, work, constants, {"num_warps": 4, "num_stages": 1})

    def _input_terms(self) -> None:
        tile = pixels_tile(self.c, self.c, self.settings.acc_dtype, *self.tiling[1:])
        work = []
        for group in self.groups:
            of, own = group.input, group.from_batch
            pairs = Extra(tuple(word for pair in own for word in (pair.weight1, pair.q, pair.e, pair.K)))
            programs = _tiles(of.c, tile.block_m) * _tiles(of.c, tile.block_n) if own else 0
            work.append(Work(programs, (of.matrix, of.bias, of.c, len(own), pairs)))
        # two operands from one weight: a deeper pipeline spills
        two_stages = {"num_warps": tile.num_warps, "num_stages": min(2, tile.num_stages)}
        self.launches.add(input_terms_kernel, work, {**self.acc, **blocks(tile)}, two_stages)

    def _d_x(self) -> None:
        tile = epilogue_tile(self.c, self.K, *self.tiling)
        work = []
        for group in self.groups:
            of = group.input
            d_x, written = of.group.gradient()
            pairs = Extra(tuple(word for pair in group.pairs for word in (pair.d_h1, pair.h1, pair.back, pair.K)))
            flags = int(bool(group.from_batch)), int(written)
            words = (of.x, of.matrix, of.bias, d_x, of.pixels, of.c, len(group.pairs), pairs, *flags)
            work.append(Work(_tiles(of.pixels, tile.block_m) * _tiles(of.c, tile.block_n), words))
        precisions = {"PRECISION": self.settings.precision, "M_PRECISION": self.settings.matrix_precision}
        self._product(d_x_kernel, work, tile, **precisions)
