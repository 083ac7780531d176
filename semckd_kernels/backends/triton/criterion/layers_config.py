"""Launch knobs of the kernels of whole layers: frozen dataclasses, pure functions, a reason beside each number.

None of the numbers is measured on a GPU yet. Registers and shared memory behind them were read from what the compiler
makes of each kernel (``python python_tests/helpers/triton_resources.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..device import warp_size
from .config import FP64_BLOCKS, MANY, MIN_STEPS, TARGET_PROGRAMS, ProductTile, RowTile, tile_of

# where a similarity has fewer samples, one program has all of them; 16-bit types of larger batches have tiles of twice
# the side, which halves what is read
SIMILARITY_SAMPLES = 64


@dataclass(frozen=True)
class MapTile:
    """One program of a map's gradient: ``block_m`` samples by ``block_p`` pixels by ``block_c`` channels.

    Attributes:
        block_k: samples that one step of the product adds.
    """

    block_m: int
    block_p: int
    block_c: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AttentionTile:
    """Programs of the attention's small products.

    Attributes:
        block_m: samples, or student layers, of a program.
        block_n: features that it computes at once.
        block_g: both sides of a program's part of a parameter's gradient.
        block_k: terms a step.
    """

    block_m: int
    block_n: int
    block_g: int
    block_k: int


def similarity_tile(batch_size: int, dtype: torch.dtype, arch: str) -> ProductTile:
    """A product of samples with samples.

    Args:
        batch_size: Bq, so that a smaller last batch compiles nothing new.
        dtype: type of the rows.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    sizes = (batch_size, batch_size, MANY)
    if dtype == torch.float64:
        block_m, _, block_k = FP64_BLOCKS
        # 64 products a thread, as everywhere in fp64, of a square tile
        return tile_of(sizes, (block_m, block_m, 2 * block_k), 128, 1, dtype.itemsize, arch)
    if dtype == torch.float32:
        # without tensor cores both operands stand in registers: 80 with 256 threads, 168 with 128
        return tile_of(sizes, (SIMILARITY_SAMPLES, SIMILARITY_SAMPLES, 32), 256, 3, dtype.itemsize, arch)
    if batch_size <= SIMILARITY_SAMPLES:
        return tile_of(sizes, (SIMILARITY_SAMPLES, SIMILARITY_SAMPLES, 64), 128, 4, dtype.itemsize, arch)
    # 96 KiB of shared memory, and 108 registers: two programs share an H100's multiprocessor
    return tile_of(sizes, (2 * SIMILARITY_SAMPLES, 2 * SIMILARITY_SAMPLES, 64), 256, 3, dtype.itemsize, arch)


def split_terms(work: int, block: int) -> int:
    """Terms a split of a similarity's sum, a multiple of ``block``.

    Args:
        work: terms of all tiles of a launch.
        block: terms a step.
    """
    return max(MIN_STEPS, -(-work // (TARGET_PROGRAMS * block))) * block


def map_tile(dtype: torch.dtype, acc_dtype: torch.dtype, arch: str) -> MapTile:
    """The gradient of maps.

    Args:
        dtype: type of the rows.
        acc_dtype: type of the product.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    if acc_dtype == torch.float64:
        return MapTile(16, 2, 16, 16, 128 // warp_size(arch), 1)
    # eight pixels and sixteen channels fill sectors of 32 bytes on both sides of a transposition, also those of 16-bit
    # rows. 32 samples have 103 registers on sm_90, so two programs share a multiprocessor; 64 have 155
    return MapTile(32, 8, 16, 32, 256 // warp_size(arch), 2)


def attention_tile(acc_dtype: torch.dtype) -> AttentionTile:
    """The fewest samples that a product takes, so that there are many programs, and many features, so that a program's
    loops are short: latency bounds them."""
    return AttentionTile(16, 64, 32, 16 if acc_dtype == torch.float64 else 32)


# threads of the attention's kernels: 64 features are 110 registers with 256 threads. A kernel that is one product
# fetches two steps ahead; in those of several products that spills
EMBED_THREADS = 256
PRODUCT_THREADS = 128
PRODUCT_STAGES = 3


def transpose_tile(itemsize: int, arch: str) -> RowTile:
    """Rows of maps: 64 bytes along pixels and 128 along channels in 16-bit types, 16 elements a thread."""
    return RowTile(32, 64 if itemsize < 8 else 32, 128 // warp_size(arch), 1)


# weights that a program of the loss takes, and slots that the last one adds in one step: more spill in fp64
LOSS_BLOCK = (2048, 128)
LOSS_THREADS = 128
