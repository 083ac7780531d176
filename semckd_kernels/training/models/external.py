"""Networks that others wrote: torchvision's, timm's, and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from ...features import nearest, timm_layers
from ...install import pip_install
from .. import named_code
from ..errors import typed_line
from .stages import stage_ends, torchvision_layers


class Found(NamedTuple):
    """A network, the layers to take from it, and how to read their outputs (as in ``FeatureNet``)."""

    net: nn.Module
    layers: list[str] | None = None
    prefix_tokens: int = 0
    nhwc: bool = False


class Wanted(NamedTuple):
    """What a network is asked for; ``image_size`` is ``(H, W)``."""

    classes: int
    in_channels: int
    image_size: tuple[int, int]
    pretrained: bool


def from_torchvision(name: str, wanted: Wanted) -> Found:
    """``torchvision/NAME``: any of its classification models."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no model '{name}'{nearest(name, known)}")
    if wanted.in_channels != 3:
        raise ValueError(f"torchvision/{name} takes images of 3 channels, got in_channels={wanted.in_channels}")
    options: dict[str, Any] = {"num_classes": wanted.classes}
    height, width = wanted.image_size
    if name.startswith("vit_"):
        if height != width:
            raise ValueError(f"torchvision/{name} takes square images, got {height} x {width}")
        options["image_size"] = height
    elif name.startswith("maxvit_"):
        options["input_size"] = wanted.image_size
    elif name in ("googlenet", "inception_v3") and not wanted.pretrained:
        options |= {"init_weights": True, "aux_logits": False}
    weights = "DEFAULT" if wanted.pretrained else None
    net = _made(f"torchvision/{name}", lambda: torchvision.models.get_model(name, weights=weights, **options))
    if hasattr(net, "aux_logits"):
        # pretrained ones come with auxiliary classifiers, whose logits nothing here would use
        net.aux_logits = False
        for auxiliary in ("aux1", "aux2", "AuxLogits"):
            if hasattr(net, auxiliary):
                setattr(net, auxiliary, None)
    swin = isinstance(net, torchvision.models.SwinTransformer)
    return Found(net, torchvision_layers(name), prefix_tokens=int(name.startswith("vit_")), nhwc=swin)


def from_timm(name: str, wanted: Wanted) -> Found:
    """``timm/NAME``: any of its models, with or without a tag of weights such as ``.a1_in1k``."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm/{name}: timm is not installed: run {pip_install('timm')}") from error
    if not timm.is_model(name):
        raise ValueError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    options: dict[str, Any] = {"num_classes": wanted.classes, "in_chans": wanted.in_channels}
    # only networks whose parameters depend on the size know this option
    if timm.models.get_pretrained_cfg_value(name, "fixed_input_size"):
        options["img_size"] = wanted.image_size
    net = _made(f"timm/{name}", lambda: timm.create_model(name, pretrained=wanted.pretrained, **options))
    nhwc = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return Found(net, timm_layers(net), prefix_tokens=getattr(net, "num_prefix_tokens", 0), nhwc=nhwc)


def from_factory(name: str, wanted: Wanted) -> Found:
    """``package.module:factory``, called as ``factory(num_classes=classes)``; the working folder is searched as well.

    A network may say what its outputs are by timm's attributes ``feature_info``, ``num_prefix_tokens`` and
    ``output_fmt``; otherwise layers follow the rule of ``stages.stage_ends``.
    """
    if wanted.pretrained:
        raise ValueError(f"pretrained: {name} has no weights to fetch; load a file instead")
    factory = named_code.load(name)
    net = _made(name, lambda: factory(num_classes=wanted.classes))
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, got a {type(net).__name__}")
    nhwc = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return Found(net, timm_layers(net), prefix_tokens=getattr(net, "num_prefix_tokens", 0), nhwc=nhwc)


def settle(name: str, found: Found, image: torch.Tensor) -> Found:
    """Finds what only a forward pass tells: default layers where none are known."""
    if found.layers is not None:
        return found
    layers = _made(name, lambda: stage_ends(found.net, image, found.nhwc))
    if not layers:
        raise ValueError(f"{name}: no stages found in this network; name its layers")
    return found._replace(layers=layers)


def _made(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    # whatever a foreign constructor raises, its own message says best what does not fit
    except Exception as error:
        raise ValueError(f"{name}: {typed_line(error)}") from error
