"""The pair loss in Triton, forward and backward: the host side of ``pair_loss_kernels.py``.

The arguments have been checked by the caller: maps of one shape inside a pair, on one device, all of them fp64 or
none; at least one pair, no empty one unless the batch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....dtypes import acc_dtype
from ..device import device_arch
from ..launch import TYPES, on
from ..upload import upload
from .config import PairLossConfig, pair_loss_config, vector_numel
from .kernels import pair_loss_bwd_kernel, pair_loss_fwd_kernel
from .table import Pair, Pairs, tabulate


def constants(
    s_dtype: torch.dtype, t_dtype: torch.dtype, pairs: int, t_layers: int, config: PairLossConfig
) -> dict[str, Any]:
    """Compile-time constants that both kernels share."""
    return {
        "S_TYPE": TYPES[s_dtype],
        "T_TYPE": TYPES[t_dtype],
        "ACC_TYPE": tl.float64 if s_dtype == torch.float64 else tl.float32,
        "BLOCK_N": config.block,
        "VECTOR": vector_numel(s_dtype, t_dtype),
        "PAIRS_POW2": triton.next_power_of_2(pairs),
        "T_POW2": triton.next_power_of_2(t_layers),
    }


def fwd_constants(config: PairLossConfig) -> dict[str, Any]:
    return {"REDUCE_TILES": config.reduce_tiles, "REDUCE_ERRORS": config.reduce_errors}


def options(config: PairLossConfig) -> dict[str, Any]:
    # fusion is named since triton is going to change its default
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}


class _Launch:
    """One launch: a group of pairs of the same two types, its configuration and its table."""

    def __init__(self, members: Sequence[tuple[int, Pair]], t_layers: int, tickets: int = 0) -> None:
        first = members[0][1]
        device, batch = first.s.device, first.s.shape[0]
        dtypes = first.s.dtype, first.t.dtype
        config = pair_loss_config(batch, [pair.numel for _, pair in members], *dtypes, device_arch(device))
        words, self.tiles = tabulate(members, config.tile)
        self.table = upload(words + [0] * tickets, device)
        self.grid = (batch * self.tiles,)
        self.config = config
        # pairs, tiles, steps of the kernels' arguments
        self.sizes = (len(members), self.tiles, config.steps)
        self.constants = {**constants(*dtypes, len(members), t_layers, config), **options(config)}


def _launch_fwd(s: Sequence[Tensor], t: Sequence[Tensor], weight: Tensor | None, mse: Tensor, softmax: bool) -> Tensor:
    batch = mse.shape[0]
    s_layers, t_layers = (1, len(s)) if weight is None else weight.shape[1:]
    loss = None if weight is None else mse.new_empty(())
    pairs = Pairs(s, t)
    groups = pairs.groups()
    with on(mse.device):
        for members in groups:
            launch = _Launch(members, t_layers, tickets=batch + 1)
            # the last launch sees the pair errors of those before it
            last = members is groups[-1]
            pair_loss_fwd_kernel[launch.grid](
                launch.table,
                weight if last else None,
                mse.new_empty(launch.grid),
                mse,
                loss if last else None,
                batch,
                s_layers,
                t_layers,
                *launch.sizes,
                SOFTMAX=softmax,
                **fwd_constants(launch.config),
                **launch.constants,
            )
    return mse if loss is None else loss


def _launch_bwd(
    pairs: Pairs,
    upstream: Tensor,
    weight: Tensor | None = None,
    mse: Tensor | None = None,
    d_weight: Tensor | None = None,
    softmax: bool = False,
) -> None:
    count = len(pairs.pairs)
    s_layers, t_layers = (1, count) if weight is None else weight.shape[1:]
    with on(upstream.device):
        for members in pairs.groups():
            launch = _Launch(members, t_layers)
            pair_loss_bwd_kernel[launch.grid](
                launch.table,
                upstream,
                weight,
                mse,
                d_weight,
                members[0][1].s.shape[0],
                s_layers,
                t_layers,
                *launch.sizes,
                SOFTMAX=softmax,
                NEED_S=bool(pairs.d_s),
                NEED_T=bool(pairs.d_t),
                **launch.constants,
            )


def pair_loss_fwd(s: Sequence[Tensor], t: Sequence[Tensor], weight: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
    """The weighted pair loss; the arguments have been checked.

    Args:
        s: Q = S * T student projections in row-major ``(i, j)`` order, ``[B, ...]``, any strides.
        t: Q teacher maps of the same shapes.
        weight: ``[B, S, T]``, fp32, or fp64 with fp64 maps.
        softmax: whether ``weight`` holds energies instead of weights.

    Returns:
        The scalar loss and the pair errors ``[B, S, T]``, of the weight's type.
    """
    mse = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    if mse.shape[0] == 0:
        return mse.new_zeros(()), mse
    return _launch_fwd(s, t, weight.contiguous(), mse, softmax), mse


def pair_mse_fwd(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """Pair errors ``[B, Q]`` alone, fp32, or fp64 with fp64 maps."""
    mse = torch.empty((s[0].shape[0], len(s)), dtype=acc_dtype(s[0].dtype), device=s[0].device)
    return mse if mse.shape[0] == 0 else _launch_fwd(s, t, None, mse, False)


def pair_loss_bwd(
    d_loss: Tensor,
    s: Sequence[Tensor],
    t: Sequence[Tensor],
    weight: Tensor,
    pair_mse: Tensor,
    softmax: bool,
    need_s: bool,
    need_t: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The derivative of :func:`pair_loss_fwd`.

    Args:
        d_loss: scalar of the loss's type.
        s: as in the forward pass.
        t: as in the forward pass.
        weight: as in the forward pass.
        pair_mse: what the forward pass returned.
        softmax: as in the forward pass.
        need_s: whether ``d_s`` is wanted.
        need_t: whether ``d_t`` is wanted.

    Returns:
        ``d_s`` and ``d_t`` in the types of the maps and the packed strides of the student's (empty where not wanted),
        and ``d_weight``.
    """
    pairs = Pairs(s, t, need_s, need_t)
    d_weight = _launch_loss_bwd(pairs, d_loss, weight, pair_mse, softmax)
    return pairs.d_s, pairs.d_t, d_weight


def pair_loss_bwd_(
    d_loss: Tensor,
    s: Sequence[Tensor],
    t: Sequence[Tensor],
    weight: Tensor,
    pair_mse: Tensor,
    softmax: bool,
    need_t: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """As :func:`pair_loss_bwd`, with ``d_s`` written over ``s``.

    A map whose samples are not dense, or share memory, is copied first, and the copy is what is written and returned.
    """
    pairs = Pairs(s, t, True, need_t, in_place=True)
    d_weight = _launch_loss_bwd(pairs, d_loss, weight, pair_mse, softmax)
    return pairs.d_s, pairs.d_t, d_weight


def _launch_loss_bwd(pairs: Pairs, d_loss: Tensor, weight: Tensor, pair_mse: Tensor, softmax: bool) -> Tensor:
    """Fills the pairs' gradients and returns that of the weight."""
    d_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    if weight.shape[0] > 0:
        _launch_bwd(pairs, d_loss, weight.contiguous(), pair_mse.contiguous(), d_weight, softmax)
    return d_weight


def pair_mse_bwd(
    d_pair_mse: Tensor, s: Sequence[Tensor], t: Sequence[Tensor], need_s: bool, need_t: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The derivative of :func:`pair_mse_fwd`; ``d_pair_mse`` is ``[B, Q]`` of its type."""
    pairs = Pairs(s, t, need_s, need_t)
    if s[0].shape[0] > 0 and (need_s or need_t):
        _launch_bwd(pairs, d_pair_mse.contiguous())
    return pairs.d_s, pairs.d_t
