"""Launch knobs of the Triton kernels: one frozen dataclass, one pure function, a reason beside each number.

None of the numbers is measured on a GPU yet; they follow from the sizes of the machines they name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..device import warp_size

# 128 threads on NVIDIA: small programs start and end at different times, so that loads never pause all over the chip
NUM_WARPS = 4

# nothing is staged through shared memory: there is no matrix product that would read an element twice
NUM_STAGES = 1

# two 128-bit loads a thread and map in flight. The kernels stay within 64 registers, so 1024 threads share a
# multiprocessor and ask for 64 KiB at once; an H200 must have half of that on its way (4.8 TB/s at 1 us, 132 of them)
BYTES_PER_THREAD = 32

# a program's start costs three dependent loads (pair, pointers, first elements): spread it over some steps
MIN_STEPS = 4

# about sixteen programs for each that an H200 holds (132 multiprocessors x 8): the last ones leave a small tail idle.
# It also bounds the partial sums, and so the time of the programs that add them up
TARGET_PROGRAMS = 16384

# the final reductions are one program's loop and bound by latency, so steps should be few; but their registers count
# for every program. 512 tiles instead of 256 cost 4 to 18 registers and the step from 8 to 7 programs a multiprocessor
REDUCE_TILES = 256
# 512 pair errors are two steps at batch 64 with 3 x 3 pairs (rows of three are padded to four). With their softmax,
# 1024 spill under triton 3.6, and so do 128 in fp64
REDUCE_ERRORS = 512
REDUCE_ERRORS_FP64 = 64


@dataclass(frozen=True)
class PairLossConfig:
    """How the pair-loss kernels are launched.

    Attributes:
        block: elements of one sample that a program handles in one step (``BLOCK_N``), a power of two.
        steps: steps a program; it owns ``block * steps`` consecutive elements of a sample.
        num_warps: warps a program.
        num_stages: software pipeline stages of the compiler.
        reduce_tiles: partial sums that a sample's last program adds in one step.
        reduce_errors: pair errors that the last program of all adds in one step.
    """

    block: int
    steps: int
    num_warps: int
    num_stages: int
    reduce_tiles: int
    reduce_errors: int

    @property
    def tile(self) -> int:
        """Elements a program owns."""
        return self.block * self.steps


def pair_loss_config(
    batch: int, sizes: Iterable[int], s_dtype: torch.dtype, t_dtype: torch.dtype, arch: str
) -> PairLossConfig:
    """Chooses the launch of a group of pairs.

    Args:
        batch: B.
        sizes: elements a sample of each pair, ``N_q``.
        s_dtype: type of the student maps.
        t_dtype: type of the teacher maps.
        arch: ``"sm_90"``, ``"gfx942"``.
    """
    elements_per_thread = BYTES_PER_THREAD // min(s_dtype.itemsize, t_dtype.itemsize)
    block = NUM_WARPS * warp_size(arch) * elements_per_thread
    total = batch * sum(sizes)
    steps = max(MIN_STEPS, -(-total // (TARGET_PROGRAMS * block)))
    reduce_errors = REDUCE_ERRORS_FP64 if s_dtype == torch.float64 else REDUCE_ERRORS
    return PairLossConfig(block, steps, NUM_WARPS, NUM_STAGES, REDUCE_TILES, reduce_errors)


def vector_numel(s_dtype: torch.dtype, t_dtype: torch.dtype) -> int:
    """Elements whose multiples keep every sample of both maps aligned to 128 bits."""
    return 16 // min(s_dtype.itemsize, t_dtype.itemsize)
