"""What a GPU launch would make Triton compile, for tables of registers and spills made without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .... import dtypes
from ....stages.backend import Group, InputGradient, Norm, Pair
from ....stages.projection import Projection
from ..criterion.chunk import run_chunk
from ..criterion.settings import Settings
from ..launch import Launches
from ..pair_loss.config import pair_loss_config
from ..pair_loss.kernels import SIZES, pair_loss_bwd_kernel, pair_loss_fwd_kernel
from ..pair_loss.launches import constants, fwd_constants, options


@dataclass(frozen=True)
class Variant:
    """What a launch on a GPU would make Triton compile, for compilers that run without one."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: tuple[str, ...]  # arguments known to be multiples of 16
    options: dict[str, Any]  # num_warps, num_stages, enable_fp_fusion

    @property
    def attrs(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """The hints as ``triton.compiler.ASTSource`` takes them."""
        names = self.kernel.arg_names
        return {(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned}


def variants(
    s_dtype: torch.dtype, t_dtype: torch.dtype, arch: str, s_layers: int = 3, t_layers: int = 3
) -> list[Variant]:
    """All variants of the kernels for two types of maps.

    Args:
        s_dtype: type of the student maps.
        t_dtype: type of the teacher maps.
        arch: ``"sm_90"``, ``"gfx942"``.
        s_layers: S; with T it decides about the size of two small searches and reductions.
        t_layers: T.
    """
    pairs = s_layers * t_layers
    # ResNet-32x4 -> ResNet-8x4 at batch 64; sizes are arguments and change nothing but `steps`
    config = pair_loss_config(64, [16384] * pairs, s_dtype, t_dtype, arch)
    acc = "fp64" if s_dtype == torch.float64 else "fp32"
    weighting = {"weight_ptr": f"*{acc}", "mse_ptr": f"*{acc}"}
    fwd = {"table_ptr": "*i64", "slots_ptr": f"*{acc}", "mse_ptr": f"*{acc}"}
    bwd = {"table_ptr": "*i64", "upstream_ptr": f"*{acc}"}
    loss_fwd = {**fwd, **weighting, "loss_ptr": f"*{acc}"}
    loss_bwd = {**bwd, **weighting, "d_weight_ptr": f"*{acc}"}

    def variant(name: str, kernel: Any, pointers: dict[str, str], **flags: Any) -> Variant:
        shared = constants(s_dtype, t_dtype, pairs, t_layers if "loss" in name else pairs, config)
        constexprs = {**shared, **flags}
        signature = {}
        for argument in kernel.arg_names:
            if argument in SIZES:
                signature[argument] = "i32"
            elif argument in pointers:
                signature[argument] = pointers[argument]
            else:
                signature[argument] = "constexpr"
                constexprs.setdefault(argument, None)
        return Variant(name, kernel, signature, constexprs, tuple(pointers), options(config))

    result = []
    for softmax, suffix in ((False, ""), (True, "_softmax")):
        result.append(
            variant(f"pair_loss_fwd{suffix}", pair_loss_fwd_kernel, loss_fwd, SOFTMAX=softmax, **fwd_constants(config))
        )
    result.append(variant("pair_mse_fwd", pair_loss_fwd_kernel, fwd, SOFTMAX=False, **fwd_constants(config)))
    for need_t, wanted in ((False, "d_s"), (True, "d_s_d_t")):
        flags = {"NEED_S": True, "NEED_T": need_t}
        result.append(variant(f"pair_loss_bwd_{wanted}", pair_loss_bwd_kernel, loss_bwd, SOFTMAX=False, **flags))
        result.append(variant(f"pair_loss_bwd_softmax_{wanted}", pair_loss_bwd_kernel, loss_bwd, SOFTMAX=True, **flags))
        result.append(variant(f"pair_mse_bwd_{wanted}", pair_loss_bwd_kernel, bwd, SOFTMAX=False, **flags))
    return result


class Recorded(Launches):
    """Launches nothing, and remembers what each launch would compile."""

    variants: dict[str, Variant] = {}  # noqa: RUF012  of all instances, which a chunk makes on its own

    def run(self) -> None:
        for one in self._launches:
            name = one.kernel.__name__.removesuffix("_kernel")
            signature = {"table_ptr": "*i64", "rows": "i32"} | dict.fromkeys(one.constants, "constexpr")
            options = {**one.options, "enable_fp_fusion": True}
            self.variants[name] = Variant(name, one.kernel, signature, one.constants, ("table_ptr",), options)
        self._launches = []


def criterion_variants(dtype: torch.dtype, arch: str, s_channels: int, t_channels: int) -> list[Variant]:
    """All variants of the kernels of one pair; channels decide about the size of tiles, and whether accesses are acc.

    Args:
        dtype: type of the maps.
        arch: ``"sm_90"``, ``"gfx942"``.
        s_channels: c, the student's channels.
        t_channels: C, the teacher's channels.
    """
    acc = dtypes.acc_dtype(dtype)

    def empty(*shape: int, dtype: torch.dtype = acc) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    c, k = s_channels, 2 * t_channels
    parameters = Projection(
        empty(k, c, 1, 1), empty(k), empty(k), empty(k, k, 3, 3), empty(k), empty(k), empty(t_channels, k, 1, 1)
    )
    norm = Norm(empty(k), empty(k), 1e-5, True)
    pair = Pair(0, empty(64, 32, 32, t_channels, dtype=dtype), parameters, (norm, norm), 1.0, 1.0)
    x = empty(64, 32, 32, c, dtype=dtype)
    settings = Settings(x.device, dtype, need_grad=True, arch=arch, launches=Recorded)
    Recorded.variants = {}
    run_chunk(settings, [Group(0, (32, 32), x, [pair], 1.0, InputGradient())], empty(64, 1, 1), empty(64, 1, 1))
    return list(Recorded.variants.values())
