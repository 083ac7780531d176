"""Launch knobs of the kernels of whole layers: frozen dataclasses, pure functions, a reason beside each number.

None of the numbers is measured on a GPU yet. Registers and shared memory behind them were read from what the compiler
makes of each kernel (``python python_tests/triton_resources.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import warp_size
from .criterion_config import FP64_BLOCKS, MANY, MIN_STEPS, TARGET_PROGRAMS, ProductTile, RowTile, _tile

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
    """One program of the attention: ``block_m`` samples, ``block_n`` features, ``block_k`` terms a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int


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
        return _tile(sizes, (block_m, block_m, 2 * block_k), 128, 1, dtype.itemsize, arch)
    if dtype == torch.float32:
        return _tile(sizes, (SIMILARITY_SAMPLES, SIMILARITY_SAMPLES, 32), 128, 3, dtype.itemsize, arch)
    if batch_size <= SIMILARITY_SAMPLES:
        return _tile(sizes, (SIMILARITY_SAMPLES, SIMILARITY_SAMPLES, 64), 128, 4, dtype.itemsize, arch)
    return _tile(sizes, (2 * SIMILARITY_SAMPLES, 2 * SIMILARITY_SAMPLES, 64), 256, 4, dtype.itemsize, arch)


def split_terms(work: int, block: int) -> int:
    """Terms a split of a similarity's sum, a multiple of ``block``.

    Args:
        work: terms of all tiles of a launch.
        block: terms a step.
    """
    return max(MIN_STEPS, -(-work // (TARGET_PROGRAMS * block))) * block


def map_tile(dtype: torch.dtype, wide: torch.dtype, arch: str) -> MapTile:
    """The gradient of maps.

    Args:
        dtype: type of the rows.
        wide: type of the product.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    warps = 32 // warp_size(arch)
    if wide == torch.float64:
        return MapTile(16, 2, 16, 16, 4 * warps, 1)
    # eight pixels and sixteen channels fill sectors of 32 bytes on both sides of a transposition, also those of 16-bit
    # rows. 32 samples have 103 registers on sm_90, so two programs share a multiprocessor; 64 have 155
    return MapTile(32, 8, 16, 32, 8 * warps, 2)


def attention_tile(wide: torch.dtype, arch: str) -> AttentionTile:
    """The attention's products: the smallest tiles that a product takes, since there are few samples and features."""
    warps = 4 * 32 // warp_size(arch)
    return AttentionTile(16, 32, 16 if wide == torch.float64 else 32, warps)


def transpose_tile(itemsize: int, arch: str) -> RowTile:
    """Rows of maps: 64 bytes along pixels and 128 along channels in 16-bit types, 16 elements a thread."""
    return RowTile(32, 64 if itemsize < 8 else 32, 128 // warp_size(arch), 1)


# weights that a program of the loss takes, and slots that the last one adds in one step
LOSS_BLOCK = (2048, 256)
