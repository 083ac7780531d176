"""What one pair brings to the grouped kernels and takes from them: sizes, operands, maps, vectors and gradients.

What only kernels see is an address in an arena; maps that the vendor's convolution reads, and results, are tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....stages.backend import Group, Pair, kept_dtype
from ....stages.projection import Projection
from ..launch import Word
from .arena import Arena
from .config import fp16_factor
from .conversions import Conversions, is_aligned, is_row_major
from .settings import Settings


class Memory:
    """Of one chunk: scratch memory, and the copies that bring parameters into the kernels' types and layouts."""

    def __init__(self, settings: Settings) -> None:
        self.arena = Arena(settings.device)
        self.conversions = Conversions(settings.acc_dtype)

    def operand(self, parameter: Tensor, dtype: torch.dtype, transposed: bool = False) -> Word:
        """A vector, or a matrix ``[m, n, 1, 1]``, of that type and row-major: the parameter itself where it is so."""
        parameter = _readable(parameter)
        if parameter.dtype == dtype and is_row_major(parameter) and not transposed:
            return parameter
        address = self.arena.take(dtype, *parameter.shape)
        if parameter.dim() == 1:
            self.conversions.vector(parameter, address, dtype)
        else:
            self.conversions.matrix(parameter, address, dtype, transposed)
        return address

    def kernel3x3(self, parameter: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
        """A convolution's weight in channels_last, as maps are."""
        parameter = _readable(parameter)
        if parameter.dtype == dtype and factor == 1 and parameter.is_contiguous(memory_format=torch.channels_last):
            return parameter
        out = torch.empty(parameter.shape, dtype=dtype, device=parameter.device, memory_format=torch.channels_last)
        return convert(self.conversions, parameter, out, factor)


def convert(conversions: Conversions, x: Tensor, out: Tensor, factor: float) -> Tensor:
    """``out = factor * x``, in a launch with others or, where strides are odd, at once."""
    if not conversions.tensor(x, out, factor):
        out.copy_(x * factor)
    return out


def _readable(parameter: Tensor) -> Tensor:
    """At an address as kernels are promised; a view into a buffer of parameters may lie anywhere."""
    return parameter.detach() if is_aligned(parameter) else parameter.detach().clone()


class Gradients:
    """Of a projection's parameters: where kernels write them, and like their parameters, as they are wanted.

    Args:
        parameters: the projection's.
        acc_dtype: the accumulation type, which kernels write.
        factor: what finished gradients are multiplied by.
    """

    def __init__(self, parameters: Projection, acc_dtype: torch.dtype, factor: float) -> None:
        self.factor, self._weight2 = factor, parameters.weight2
        # the vendor library makes the 3x3's
        small = parameters._replace(weight2=parameters.gamma2)
        self.wanted = Projection(*(_like(x) for x in small))
        self.written = Projection(*(self._written(x, acc_dtype) for x in self.wanted))

    def _written(self, wanted: Tensor, acc_dtype: torch.dtype) -> Tensor:
        if wanted.dtype == acc_dtype and is_row_major(wanted):
            return wanted
        return torch.empty(wanted.shape, dtype=acc_dtype, device=wanted.device)

    def finish(self, conversions: Conversions, d_weight2: Tensor, d_z_factor: float) -> Projection:
        """The gradients, once these copies have been launched."""
        for written, wanted in zip(self.written, self.wanted, strict=True):
            if written is not wanted or self.factor != 1:
                convert(conversions, written, wanted, self.factor)
        like = _like(self._weight2)
        if self.factor == d_z_factor and like.dtype == d_weight2.dtype and like.stride() == d_weight2.stride():
            like = d_weight2
        else:
            convert(conversions, d_weight2, like, self.factor / d_z_factor)
        return self.wanted._replace(weight2=like)


def _like(parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=kept_dtype(parameter.dtype))


class Input:
    """A group's input, its gradient, and where what is computed from it lies."""

    def __init__(self, group: Group, memory: Memory, settings: Settings) -> None:
        self.group, self.x, self.later = group, group.x, group.later
        self.pixels, self.c = group.pixels, group.x.shape[-1]
        acc, take = settings.acc_dtype, memory.arena.take
        self.mean, self.bias = take(acc, self.c), take(acc, self.c)
        self.covariance, self.matrix = take(acc, self.c, self.c), take(acc, self.c, self.c)


class GroupRun:
    """A group's input and pairs. Pairs know their input and not their group: a cycle would keep all maps alive."""

    def __init__(self, group: Group, memory: Memory, settings: Settings) -> None:
        self.input = Input(group, memory, settings)
        self.pairs = [PairRun(self.input, pair, memory, settings) for pair in group.pairs]

    @property
    def from_batch(self) -> list[PairRun]:
        """The pairs whose first BatchNorm uses the batch's statistics."""
        return [run for run in self.pairs if run.norm1.from_batch]


class NormRun:
    """One BatchNorm's parameters and vectors."""

    def __init__(self, run: PairRun, which: int, memory: Memory, settings: Settings) -> None:
        norm, p = run.pair.norms[which], run.pair.parameters
        acc, k = settings.acc_dtype, run.K
        self.eps, self.from_batch = float(norm.eps), norm.batch_statistics
        gamma, beta = (p.gamma1, p.beta1) if which == 0 else (p.gamma2, p.beta2)
        self.gamma, self.beta = memory.operand(gamma, acc), memory.operand(beta, acc)
        self.invstd, self.scale = memory.arena.take(acc, k), memory.arena.take(acc, k)
        self.statistics: list[Tensor] = []
        self.mean: Word
        self.unbiased: Word = 0
        self.running: tuple[Word, Word] = (0, 0)
        if self.from_batch:
            # results
            self.mean, self.unbiased = self.statistics = [
                torch.empty(k, dtype=acc, device=settings.device) for _ in range(2)
            ]
        else:
            self.mean = memory.arena.take(acc, k)
            self.running = (memory.operand(norm.running_mean, acc), memory.operand(norm.running_var, acc))


class PairRun:
    """A pair's sizes, operands, maps and results."""

    def __init__(self, of: Input, pair: Pair, memory: Memory, settings: Settings) -> None:
        self.of, self.pair = of, pair
        self.pixels, self.c, self.C = of.pixels, of.c, pair.target.shape[-1]
        self.K = 2 * self.C
        self.pixels_of_one = self.pixels // len(of.x)
        acc, maps = settings.acc_dtype, settings.map_dtype
        # exact, a power of two: d_z and with it d_weight are smaller, the weight on the way to d_h1 larger
        self.d_z_factor = fp16_factor(self.pixels) if maps == torch.float16 else 1.0
        self.factor_x = pair.outside / of.later
        p, take = pair.parameters, memory.arena.take
        self.norm1, self.norm2 = (NormRun(self, which, memory, settings) for which in range(2))
        self.weight1, self.weight3 = memory.operand(p.weight1, acc), memory.operand(p.weight3, maps)
        self.weight2 = self.weight2_back = memory.kernel3x3(p.weight2, maps)
        # a copy is not kept where all maps are alive, if it is as wide as the parameter: it is made again behind that
        is_copy = self.weight2.data_ptr() != p.weight2.data_ptr()
        self.copies_again = settings.need_grad and is_copy and maps.itemsize >= torch.float32.itemsize
        self.with_input = take(acc, self.K, self.c)
        self.folded, self.back, self.bias = take(maps, self.K, self.c), take(maps, self.c, self.K), take(acc, self.K)
        self.h1 = torch.empty((*of.x.shape[:3], self.K), dtype=maps, device=settings.device)
        # made by the convolution
        self.z = self.d_h1 = self.d_weight2 = self.h1
        if settings.need_grad:
            self.weight3_back = memory.operand(p.weight3, maps, transposed=True)
            if self.d_z_factor != 1:
                self.weight2_back = memory.kernel3x3(p.weight2, maps, 1 / self.d_z_factor)
            self.sum_dz, self.q, self.e = take(acc, self.K), take(acc, self.K), take(acc, self.K)
            self.d_h2, self.r = torch.empty_like(self.h1), torch.empty_like(pair.target)
            self.gradients = Gradients(p, acc, pair.outside)

    @property
    def statistics(self) -> list[Tensor]:
        """Mean and unbiased variance of each BatchNorm that uses the batch's."""
        return [*self.norm1.statistics, *self.norm2.statistics]
