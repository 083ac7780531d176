"""What a GPU launch would make Triton compile, for tables of registers and spills made without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import pair_loss_config
from .criterion_stages import TritonStages
from .launch import TYPES
from .linear_kernels import linear_kernel
from .pair_loss import constants, fwd_constants, options
from .pair_loss_kernels import SIZES, pair_loss_bwd_kernel, pair_loss_fwd_kernel


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
    wide = "fp64" if s_dtype == torch.float64 else "fp32"
    weighting = {"weight_ptr": f"*{wide}", "mse_ptr": f"*{wide}"}
    fwd = {"table_ptr": "*i64", "slots_ptr": f"*{wide}", "mse_ptr": f"*{wide}"}
    bwd = {"table_ptr": "*i64", "upstream_ptr": f"*{wide}"}
    loss_fwd = {**fwd, **weighting, "loss_ptr": f"*{wide}"}
    loss_bwd = {**bwd, **weighting, "d_weight_ptr": f"*{wide}"}

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


class _RecordedStages(TritonStages):
    """Stages that launch nothing and remember what each launch would have compiled."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.variants: dict[str, Variant] = {}

    def _arch(self, device: torch.device) -> str:
        return self.arch

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: tuple[Tensor | float | None, ...],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        signature, constexprs, aligned = {}, dict(constants), []
        for name, value in zip(kernel.arg_names, arguments, strict=False):
            varies = name in kernel.do_not_specialize
            if isinstance(value, Tensor):
                signature[name] = f"*{TYPES[value.dtype].name}"
                aligned.append(name)
            elif value is None or (value == 1 and not varies):
                # the launcher makes a constant of a 1
                signature[name], constexprs[name] = "constexpr", value
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if value % 16 == 0 and not varies:
                    aligned.append(name)
        signature |= dict.fromkeys(constants, "constexpr")
        suffixes = {"RELU": "_relu", "ADD": "_add"}
        name = kernel.__name__.removesuffix("_kernel")
        name += "".join(suffix for flag, suffix in suffixes.items() if constants.get(flag))
        # the sums of columns and of many columns differ in their blocks
        name += "_of_one" if constants.get("BLOCK_I") == 1 else ""
        name += "_masked" if kernel is linear_kernel and signature["h_ptr"] != "constexpr" else ""
        self.variants[name] = Variant(name, kernel, signature, constexprs, tuple(aligned), options)


def criterion_variants(dtype: torch.dtype, arch: str, s_channels: int, t_channels: int) -> list[Variant]:
    """All variants of the criterion's kernels for one pair.

    Args:
        dtype: type of the maps.
        arch: ``"sm_90"``, ``"gfx942"``.
        s_channels: c, the student's channels.
        t_channels: C, the teacher's channels.
    """
    wide = torch.promote_types(dtype, torch.float32)

    def rows(channels: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(64, 32, 32, channels, dtype=dtype, device="meta")

    def vector(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide, device="meta")

    c, k = s_channels, 2 * t_channels
    x, y, h, z = rows(c), rows(t_channels), rows(k), rows(k)
    constants = vector(k), vector(k), vector(k)
    stages = _RecordedStages(arch)
    stages.moments(x)
    stages.linear_relu(x, vector(k, c), vector(k), h)
    stages.conv3x3(h, vector(k, k, 3, 3), True)
    stages.end(z, *constants, vector(t_channels, k), y, vector(64), rows(k))
    stages.conv3x3_backward(h, vector(k, k, 3, 3), z, rows(k), *constants)
    stages.linear_relu_backward(x, h, rows(k), vector(k, c), rows(c, wide), True)
    stages.linear_add_(x, vector(c, c), vector(c), rows(c, wide))
    return list(stages.variants.values())
