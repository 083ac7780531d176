"""One chunk of pairs on its way through the grouped kernels: one launch a stage, the vendor's 3x3 a pair and pass.

Addresses go to the device in tables, so there are three batches of launches: up to the convolutions, between them and
their backward, and after that; a fourth of one launch where copies of fp32 weights are made again. Nothing here waits
for the device or depends on data, so a CUDA graph can capture all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....stages.backend import Group, PairResult
from ....stages.streams import SideStreams
from . import stage_launches as stage
from .conversions import Conversions
from .convolution import conv3x3_backward
from .pair_run import GroupRun, Memory, PairRun
from .settings import Settings


def run_chunk(settings: Settings, groups: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]:
    """See :meth:`semckd_kernels.stages.backend.Backend.run_chunk`."""
    memory = Memory(settings)
    runs = [GroupRun(group, memory, settings) for group in groups]
    pairs = [pair for group in runs for pair in group.pairs]
    launches = stage.StageLaunches(settings, runs)
    memory.conversions.launch(launches.launches)
    launches.moments()
    launches.fold()
    launches.linear_relu()
    launches.run()

    _each(pairs, _convolve)
    again = [pair for pair in pairs if pair.copies_again]
    for pair in again:
        del pair.weight2, pair.weight2_back
    launches.norm2()
    launches.end(alpha, mse)
    if not settings.need_grad:
        launches.run()
        return [PairResult(pair.statistics, None) for pair in pairs]
    launches.d_z()
    launches.run()
    for pair in pairs:
        del pair.r, pair.z
    for pair in again:
        pair.weight2_back = memory.kernel3x3(pair.pair.parameters.weight2, settings.map_dtype)
    memory.conversions.launch(launches.launches)
    launches.run()

    _each(pairs, _convolve_backward)
    launches.linear_backward()
    conversions = Conversions(settings.acc_dtype)
    gradients = [pair.gradients.finish(conversions, pair.d_weight2, pair.d_z_factor) for pair in pairs]
    conversions.launch(launches.launches)
    launches.run()
    return [PairResult(pair.statistics, own) for pair, own in zip(pairs, gradients, strict=True)]


def _each(pairs: Sequence[PairRun], work: Callable[[PairRun], None]) -> None:
    with SideStreams(pairs[0].h1.device) as streams:
        for n, pair in enumerate(pairs):
            with streams.take(n):
                work(pair)


def _as_map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    # a library that answers in another layout costs a copy here, and nothing where it does not
    return x.permute(0, 2, 3, 1).contiguous()


def _convolve(pair: PairRun) -> None:
    z = torch.ops.aten.convolution(_as_map(pair.h1), pair.weight2, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    pair.z = _as_rows(z)


def _convolve_backward(pair: PairRun) -> None:
    d_h1, pair.d_weight2 = conv3x3_backward(_as_map(pair.d_h2), _as_map(pair.h1), pair.weight2_back)
    pair.d_h1 = _as_rows(d_h1)
    # the convolution was its last reader
    del pair.d_h2
