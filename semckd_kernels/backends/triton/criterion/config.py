"""Launch knobs of the criterion's kernels: frozen dataclasses, pure functions, a reason beside each number.

None of the numbers is measured on a GPU yet. Registers and shared memory behind them were read from what the compiler
makes of each kernel (``python python_tests/helpers/triton_resources.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..device import warp_size

# shared memory that one program can have, KiB; of an architecture that is not listed, what all have
SHARED_KIB = {
    **dict.fromkeys(("sm_80", "sm_87"), 163),
    **dict.fromkeys(("sm_86", "sm_89", "sm_120", "sm_121"), 99),
    **dict.fromkeys(("sm_90", "sm_100", "sm_103"), 227),
}
SHARED_KIB_OF_ALL = 64

# two programs for each of an H200's 132 multiprocessors: sums over pixels are split until that many have work. More
# splits would only add slots to write and to add up
TARGET_PROGRAMS = 264

# statistics are bound by bandwidth: seven programs of 128 threads and 69 registers on each of an H200's
# multiprocessors, each with 8 KiB under way
STATISTICS_PROGRAMS = 924

# a split has at least this many steps, so that filling the pipeline stays a small part of it
MIN_STEPS = 8

# offsets inside a split are 32-bit
MAX_SPLIT_NUMEL = 2**30


@dataclass(frozen=True)
class ProductTile:
    """One program of a matrix product.

    Attributes:
        block_m: rows of the result, a power of two from 16 on, as all three.
        block_n: columns of the result.
        block_k: terms of the sum that one step adds.
        num_warps: warps a program.
        num_stages: software pipeline stages of the compiler.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class RowTile:
    """One program of a kernel that goes over rows element by element: ``block_p`` pixels by ``block_c`` channels."""

    block_p: int
    block_c: int
    num_warps: int
    num_stages: int


def algebra_blocks(dtype: torch.dtype) -> tuple[int, int, int]:
    """Of the kernels on a BatchNorm's vectors and matrices."""
    return FP64_BLOCKS if dtype == torch.float64 else ALGEBRA_BLOCKS


def tile_of(
    sizes: tuple[int, int, int], blocks: tuple[int, int, int], threads: int, stages: int, itemsize: int, arch: str
) -> ProductTile:
    """Blocks no larger than the sizes need, stages no more than shared memory holds."""
    m, n, k = (min(block, max(16, 1 << (size - 1).bit_length())) for size, block in zip(sizes, blocks, strict=True))
    if arch.startswith("gfx"):
        # the next step is fetched into registers, and one buffer is all that 64 KiB have room for
        stages = min(stages, 2)
    else:
        # a quarter is left to a computed operand and to changes of layout
        room = SHARED_KIB.get(arch, SHARED_KIB_OF_ALL) * 768
        stages = max(1, min(stages, room // ((m + n) * k * itemsize)))
    return ProductTile(m, n, k, max(1, threads // warp_size(arch)), stages)


# any size of rows: tiles are full but for the last
MANY = 1 << 30


def rows_tile(
    columns: int, terms: int, dtype: torch.dtype, arch: str, aligned: bool = True, computed: bool = False
) -> ProductTile:
    """A product whose rows are pixels and whose sum goes over channels.

    Args:
        columns: channels of the result.
        terms: channels of the rows.
        dtype: type of the operands.
        arch: ``"sm_90"``, ``"gfx942"``.
        aligned: whether accesses to maps are 128 bits wide.
        computed: whether the rows are computed from what is loaded.
    """
    sizes = (MANY, columns, terms)
    if dtype == torch.float64:
        return tile_of(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if not aligned:
        return tile_of(sizes, *UNALIGNED, dtype.itemsize, arch)
    if dtype == torch.float32:
        # half the columns: without tensor cores both operands stand in registers
        return tile_of(sizes, (128, 64, 32), 256, 3, dtype.itemsize, arch)
    # 115 registers on sm_90, so two programs of 256 threads share its multiprocessor; but 174 on sm_80, spills on
    # sm_100, and 140 with BatchNorm and ReLU on the way in: there half the rows, which cost 114, 64 and 98
    wide = arch.startswith(("sm_9", "gfx")) and not computed
    block_m = 128 if wide else 64
    return tile_of(sizes, (block_m, 128, 32), 128 if columns <= 64 else 256, 4, dtype.itemsize, arch)


def epilogue_tile(columns: int, terms: int, dtype: torch.dtype, arch: str, aligned: bool = True) -> ProductTile:
    """As :func:`rows_tile`, for results that meet another map, or themselves, on their way out: half the rows.

    128 cost 190 registers there, and one program has the multiprocessor; 64 cost 94 to 122.
    """
    sizes = (MANY, columns, terms)
    if dtype == torch.float64:
        return tile_of(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if not aligned:
        return tile_of(sizes, *UNALIGNED, dtype.itemsize, arch)
    if dtype == torch.float32:
        return tile_of(sizes, (64, 64, 32), 128, 3, dtype.itemsize, arch)
    return tile_of(sizes, (64, 128, 64), 128 if columns <= 64 else 256, 3, dtype.itemsize, arch)


def pixels_tile(rows: int, columns: int, dtype: torch.dtype, arch: str, aligned: bool = True) -> ProductTile:
    """A product whose sum goes over pixels.

    Args:
        rows: channels of the computed operand.
        columns: channels of the other one.
        dtype: type of the operands.
        arch: ``"sm_90"``, ``"gfx942"``.
        aligned: as :func:`rows_tile`.
    """
    sizes = (rows, columns, MANY)
    if dtype == torch.float64:
        return tile_of(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if not aligned:
        return tile_of(sizes, *UNALIGNED, dtype.itemsize, arch)
    if dtype == torch.float32:
        # 32 pixels a step cost 255 registers on sm_80, and spills
        return tile_of(sizes, (64, 64, 16), 128, 4, dtype.itemsize, arch)
    # 125 registers with a computed operand, 102 with a masked one, where 64 pixels a step cost 172 and 145: one program
    # a multiprocessor instead of two. sm_80 needs 139 for 128 columns
    return tile_of(sizes, (64, 64 if arch.startswith("sm_8") else 128, 32), 256, 4, dtype.itemsize, arch)


# blocks, threads and stages where elements are loaded one by one: each needs an address of its own, and with the tiles
# above products have 255 registers, and spills
UNALIGNED = ((64, 64, 32), 256, 2)

# products in fp64 are sums of broadcast products, 64 a thread
FP64_BLOCKS = (16, 32, 16)


def split_pixels(work: Sequence[tuple[int, int, int]], block: int, programs: int = TARGET_PROGRAMS) -> list[int]:
    """Pixels a split of each of several sums over pixels that share a launch, multiples of ``block``.

    All programs get about as much to do, and there are about as many as are wanted.

    Args:
        work: for each sum its pixels P, the programs that one split has, and the channels of its wider operand.
        block: pixels a step.
        programs: how many are wanted in all.
    """
    steps = -(-sum(-(-pixels // block) * tiles for pixels, tiles, _ in work) // programs)
    return [min(max(MIN_STEPS, steps), max(1, MAX_SPLIT_NUMEL // (wider * block))) * block for _, _, wider in work]


def row_tile(channels: int, dtype: torch.dtype, arch: str) -> RowTile:
    """For the statistics and for the backward of BatchNorm."""
    block_c = min(64, max(16, 1 << (channels - 1).bit_length()))
    # 32 bytes a thread and map in flight, as in the pair loss
    block_p = max(1, 128 * 32 // dtype.itemsize // block_c)
    # two more steps under way while one is added up
    return RowTile(block_p, block_c, 128 // warp_size(arch), 3)


# how many slots the kernel that adds them up takes in one step, and how many columns: 16 elements a thread, so that a
# sum of all splits takes nine loads that wait for each other
SUM_BLOCK = (32, 64)
# errors of pixels are added up along memory
ERRORS_BLOCK = 1024
# how many runs' statistics are merged in one step
MERGE_BLOCK = 32
# above so many slots they are added up in groups of this size first: a single program would leave most of the chip idle
SUM_GROUP = TARGET_PROGRAMS

# warps of those kernels
SUM_WARPS = 4

# channels of K that a program of the BatchNorm's algebra has, columns and terms a step: few rows, so that there are
# programs for all multiprocessors
ALGEBRA_BLOCKS = (16, 64, 16)

# sums over pixels may leave fp16's range, where their summands are of order one: see `fp16_factor`
SMALLEST_FP16_FACTOR = 2**-8


def fp16_factor(pixels: int) -> float:
    """A power of two that keeps sums over pixels of what is of order one within fp16's range.

    The root of ``1/P``: random summands then add up to order one, and coherent ones to ``sqrt(P)``. It has a limit,
    since the summands themselves lose their small values to fp16's subnormals from 2^-14 on.
    """
    return max(SMALLEST_FP16_FACTOR, 2.0 ** -(pixels.bit_length() // 2))
