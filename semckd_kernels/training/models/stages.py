"""Which layers to take where none are named."""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from ...features import LIMIT, POOLS, evenly

# torchvision's families whose stages are modules with names; the others follow the rule of stage_ends
_FAMILIES = {
    r"(wide_)?resne(x)?t\d+.*": [f"layer{n}" for n in range(1, 5)],
    r"densenet\d+": [f"features.denseblock{n}" for n in range(1, 5)],
    r"shufflenet_v2.*": [f"stage{n}" for n in range(2, 5)],
    r"regnet_.*": [f"trunk_output.block{n}" for n in range(1, 5)],
    r"mnasnet.*": [f"layers.{n}" for n in (8, 9, 11, 13)],
    r"maxvit_t": [f"blocks.{n}" for n in range(4)],
}


def torchvision_layers(name: str) -> list[str] | None:
    """Layers of a torchvision model whose stages have names, else None."""
    return next((layers for pattern, layers in _FAMILIES.items() if re.fullmatch(pattern, name)), None)


class _Call(NamedTuple):
    shape: torch.Size
    calls: int


def stage_ends(net: nn.Module, images: Tensor, nhwc: bool = False) -> list[str]:
    """Layers of any network, from the shapes its modules give in a forward pass.

    Of the modules that hold others, the one whose children give maps of the most resolutions is taken for the backbone
    (the outermost, where several do). Of its children, the last one at each resolution ends a stage; the last four
    stages are taken. Pools, single convolutions with their activation, maps of one pixel and modules that run more than
    once are passed over. A network without two resolutions gives four evenly spaced members of the longest Sequential
    or ModuleList whose tokens (or maps) have the same shape.

    Args:
        net: in whatever mode it is to run.
        images: ``[B, C, H, W]``.
        nhwc: maps are ``[B, h, w, c]``.

    Returns:
        Paths of modules, none if nothing fits.
    """
    calls = _calls(net, images)
    order = {path: n for n, path in enumerate(calls)}
    maps: list[dict[tuple[int, int], str]] = []
    rows: list[list[str]] = []
    # breadth first, so that of equals the outermost comes first
    for name, module in sorted(net.named_modules(), key=lambda entry: entry[0].count(".") + bool(entry[0])):
        children = {f"{name}.{child}".lstrip("."): part for child, part in module.named_children()}
        ran = sorted(children.keys() & calls.keys(), key=order.__getitem__)
        fit = [(path, calls[path].shape) for path in ran if _may_be_stage(children[path], calls[path], nhwc)]
        maps.append({_resolution(shape, nhwc): path for path, shape in fit if len(shape) == 4})
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            rows.append([path for path, shape in fit if shape == fit[-1][1]])
    stages = max(maps, key=len)
    if len(stages) > 1:
        return list(stages.values())[-LIMIT:]
    longest = max(rows, key=len, default=[])
    return evenly(longest) if len(longest) > 1 else []


def _may_be_stage(module: nn.Module, call: _Call, nhwc: bool) -> bool:
    if call.calls > 1 or isinstance(module, (*POOLS, Conv2dNormActivation)):
        return False
    return len(call.shape) == 3 or (len(call.shape) == 4 and _resolution(call.shape, nhwc) != (1, 1))


def _resolution(shape: torch.Size, nhwc: bool) -> tuple[int, int]:
    height, width = shape[1:3] if nhwc else shape[2:4]
    return height, width


@torch.no_grad()
def _calls(net: nn.Module, images: Tensor) -> dict[str, _Call]:
    """What each module gave in one forward pass."""
    calls: dict[str, _Call] = {}

    def note(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            calls[name] = _Call(output.shape, calls[name].calls + 1 if name in calls else 1)

    handles = [module.register_forward_hook(partial(note, name)) for name, module in net.named_modules() if name]
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls
