"""Whether a module's parameters can take part in a computation at all: on the maps' device, whole, with memory."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..derivatives import is_transformed
from ..dtypes import FLOAT_TYPES
from ..pair_loss.checks import PLAIN_TENSORS, is_wrapper
from .contract import Parts
from .cross_layer import CrossLayerModule

_DEVICE, _DTYPE, _LAYOUT = attrgetter("device"), attrgetter("dtype"), attrgetter("layout")


def check_placement(module: CrossLayerModule, parts: Parts | None, device: torch.device) -> None:
    """Refuses parameters that no path can compute with; torch would give memory's old content for some of them.

    Args:
        parts: all that takes part, where it is as it was made; None where modules have been changed.
        device: of the maps.

    Raises:
        ValueError: a parameter is on another device, or has no memory.
        TypeError: a parameter is sparse, complex, one of shards, or not initialised.
    """
    if parts is not None and _are_fit(parts.tensors, device):
        return
    for name, owner in _called_modules(module):
        tensors: list[tuple[str, Tensor | None]] = list(owner._parameters.items())
        if isinstance(owner, nn.modules.batchnorm._BatchNorm):
            tensors += [("running_mean", owner.running_mean), ("running_var", owner.running_var)]
        for what, x in tensors:
            if x is not None:
                _check(f"{name}.{what}", x, device)
        if isinstance(owner, nn.SyncBatchNorm):
            _check_synchronised(name, owner, device)


def _are_fit(tensors: list[Tensor], device: torch.device) -> bool:
    if torch.compiler.is_compiling():
        return all(x.device == device for x in tensors)
    # few passes that each run in C: this happens in every call
    fit = {*map(_DEVICE, tensors)} == {device} and {*map(_DTYPE, tensors)} <= FLOAT_TYPES
    fit = fit and {*map(_LAYOUT, tensors)} == {torch.strided}
    has_memory = device.type in ("cpu", "cuda") and {*map(type, tensors)} <= PLAIN_TENSORS and not is_transformed()
    return fit and (not has_memory or all(map(Tensor.data_ptr, tensors)))


def _called_modules(module: CrossLayerModule) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold their parameters when they are called; hooks may fetch those of others before."""
    waiting: list[tuple[str, nn.Module]] = [(name, child) for name, child in module._modules.items() if child]
    while waiting:
        name, owner = waiting.pop(0)
        if owner._forward_pre_hooks or "forward" in owner.__dict__:
            continue
        yield name, owner
        waiting.extend((f"{name}.{child}", m) for child, m in owner._modules.items() if m is not None)


def _check(name: str, x: Tensor, device: torch.device) -> None:
    if isinstance(x, UninitializedParameter):
        raise TypeError(f"{name} must be initialised, got {type(x).__name__}: its module has not been called yet")
    if is_wrapper(x) and hasattr(x, "full_tensor"):
        raise TypeError(
            f"{name} must be a whole tensor, got {type(x).__name__}: shard the criterion as a whole, or leave it whole"
        )
    if x.device != device:
        way = f"move the criterion with .to('{device}')"
        if x.device.type == "meta":
            way = "it was never given values: load them, or call to_empty() and initialise it"
        raise ValueError(f"{name} must be on the device of the maps, {device}, got {x.device}: {way}")
    if x.layout is not torch.strided or x.is_complex():
        kind = x.dtype if x.is_complex() else x.layout
        raise TypeError(f"{name} must be a dense tensor of real numbers, got {kind}")
    is_plain = type(x) in PLAIN_TENSORS and not torch.compiler.is_compiling() and not is_transformed()
    if is_plain and device.type in ("cpu", "cuda") and x.numel() and not x.data_ptr():
        raise ValueError(f"{name} must have its elements in memory, got none: gather it before the call")


def _check_synchronised(name: str, norm: nn.SyncBatchNorm, device: torch.device) -> None:
    is_synchronising = norm.training and torch.distributed.is_available() and torch.distributed.is_initialized()
    if is_synchronising and device.type == "cpu":
        raise ValueError(
            f"{name} is a SyncBatchNorm, which torch synchronises on GPUs alone, and the maps are on the CPU: convert "
            f"the student without the criterion (convert_sync_batchnorm(student))"
        )
