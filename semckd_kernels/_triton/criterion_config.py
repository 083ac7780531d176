"""Launch knobs of the criterion's kernels: frozen dataclasses, pure functions, a reason beside each number.

None of the numbers is measured on a GPU yet. Registers and shared memory behind them were read from what the compiler
makes of each kernel (``python python_tests/triton_resources.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import warp_size

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


def _tile(
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


def rows_tile(columns: int, terms: int, dtype: torch.dtype, arch: str) -> ProductTile:
    """A product whose rows are pixels and whose sum goes over channels.

    Args:
        columns: channels of the result.
        terms: channels of the rows.
        dtype: type of the operands.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    sizes = (MANY, columns, terms)
    if dtype == torch.float64:
        return _tile(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if dtype == torch.float32:
        # half the columns: without tensor cores both operands stand in registers
        return _tile(sizes, (128, 64, 32), 256, 3, dtype.itemsize, arch)
    # 128 registers with BatchNorm and ReLU on the way in, so two programs of 256 threads share an H100's
    # multiprocessor; 64 terms a step would cost 34 more
    return _tile(sizes, (128, 128, 32), 128 if columns <= 64 else 256, 4, dtype.itemsize, arch)


def epilogue_tile(columns: int, terms: int, dtype: torch.dtype, arch: str) -> ProductTile:
    """As :func:`rows_tile`, half the rows: for results that meet another map, or themselves, on their way out.

    The 128 rows of :func:`rows_tile` cost 190 registers there, and one program has the multiprocessor; 64 cost 100.
    """
    sizes = (MANY, columns, terms)
    if dtype == torch.float64:
        return _tile(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if dtype == torch.float32:
        return _tile(sizes, (64, 64, 32), 128, 3, dtype.itemsize, arch)
    return _tile(sizes, (64, 128, 64), 128 if columns <= 64 else 256, 3, dtype.itemsize, arch)


def pixels_tile(rows: int, columns: int, dtype: torch.dtype, arch: str) -> ProductTile:
    """A product whose sum goes over pixels.

    Args:
        rows: channels of the computed operand.
        columns: channels of the other one.
        dtype: type of the operands.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    sizes = (rows, columns, MANY)
    if dtype == torch.float64:
        return _tile(sizes, FP64_BLOCKS, 128, 1, dtype.itemsize, arch)
    if dtype == torch.float32:
        return _tile(sizes, (64, 64, 32), 128, 3, dtype.itemsize, arch)
    # 115 registers with a masked operand, where 128 rows of it cost 135: one program a multiprocessor instead of two
    return _tile(sizes, (64, 128, 64), 256, 3, dtype.itemsize, arch)


# products in fp64 are sums of broadcast products, 64 a thread
FP64_BLOCKS = (16, 32, 16)


def split_pixels(pixels: int, tiles: int, channels: int, block: int, programs: int = TARGET_PROGRAMS) -> int:
    """Pixels a split of a sum over pixels, a multiple of ``block``.

    Args:
        pixels: P.
        tiles: programs that one split has.
        channels: of the wider operand.
        block: pixels a step.
        programs: how many are wanted in all.
    """
    splits = max(1, programs // tiles)
    steps = max(MIN_STEPS, -(-pixels // (splits * block)))
    return min(steps, max(1, MAX_SPLIT_NUMEL // (channels * block))) * block


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
# sums of one column: a program's whole step goes along memory
SUM_BLOCK_OF_ONE = (1024, 1)
# the same for merging statistics, which goes over them twice: fewer steps, and more programs
MERGE_BLOCK = (128, 16)
# above so many slots a first launch adds them up in groups of this size: a single one would leave most of the chip idle
SUM_GROUP = TARGET_PROGRAMS

# warps of those kernels
SUM_WARPS = 4

# sums over pixels may leave fp16's range, where their summands are of order one: see `fp16_factor`
SMALLEST_FP16_FACTOR = 2**-8


def fp16_factor(pixels: int) -> float:
    """A power of two that keeps sums over pixels of what is of order one within fp16's range.

    The root of ``1/P``: random summands then add up to order one, and coherent ones to ``sqrt(P)``. It has a limit,
    since the summands themselves lose their small values to fp16's subnormals from 2^-14 on.
    """
    return max(SMALLEST_FP16_FACTOR, 2.0 ** -(pixels.bit_length() // 2))
