"""A name to a network with its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...features import nearest
from ..errors import first_line
from .external import Found, Wanted, from_factory, from_timm, from_torchvision, settle
from .features import FeatureNet
from .mobilenet import MOBILENET_LAYERS, MobileNetV2
from .resnet import CIFAR_RESNET_LAYERS, cifar_resnet
from .shufflenet import SHUFFLENET_LAYERS, ShuffleNetV1, ShuffleNetV2
from .vgg import VGG, VGG_CONVOLUTIONS, VGG_LAYERS
from .wide_resnet import WIDE_RESNET_LAYERS, WideResNet


class _Entry(NamedTuple):
    make: Callable[[Wanted], nn.Module]
    layers: tuple[str, ...]


def _resnet(depth: int, width: int, stem: int, wanted: Wanted) -> nn.Module:
    return cifar_resnet(depth, width, wanted.classes, wanted.in_channels, stem)


def _wide_resnet(depth: int, width: int, wanted: Wanted) -> nn.Module:
    return WideResNet(depth, width, wanted.classes, wanted.in_channels)


def _vgg(depth: int, wanted: Wanted) -> nn.Module:
    return VGG(depth, wanted.classes, wanted.in_channels, min(wanted.image_size))


def _plain(kind: Callable[[int, int], nn.Module], wanted: Wanted) -> nn.Module:
    return kind(wanted.classes, wanted.in_channels)


ZOO = {
    **{f"resnet{n}": _Entry(partial(_resnet, n, 16, 16), CIFAR_RESNET_LAYERS) for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{n}x4": _Entry(partial(_resnet, n, 64, 32), CIFAR_RESNET_LAYERS) for n in (8, 32)},
    **{f"wrn_{n}_{k}": _Entry(partial(_wide_resnet, n, k), WIDE_RESNET_LAYERS) for n in (16, 40) for k in (1, 2)},
    **{f"vgg{n}": _Entry(partial(_vgg, n), VGG_LAYERS) for n in VGG_CONVOLUTIONS},
    "mobilenetv2": _Entry(partial(_plain, MobileNetV2), MOBILENET_LAYERS),
    "shufflenetv1": _Entry(partial(_plain, ShuffleNetV1), SHUFFLENET_LAYERS),
    "shufflenetv2": _Entry(partial(_plain, ShuffleNetV2), SHUFFLENET_LAYERS),
}
# other names that the family's scripts and files use
_ALIASES = {"shufflev1": "shufflenetv1", "shufflev2": "shufflenetv2", "mobilehalf": "mobilenetv2"}
_SOURCES = {"torchvision": from_torchvision, "timm": from_timm}


def names() -> list[str]:
    """The networks of the zoo: the paper's, for images of CIFAR's size."""
    return list(ZOO)


def canonical_name(name: str) -> str:
    """The zoo's spelling of a name, ``wrn_40_2`` of ``WRN-40-2``, ``shufflenetv2`` of ``ShuffleV2``; or the name."""
    plain = name.lower().replace("-", "").replace("_", "")
    spellings = {known.replace("_", ""): known for known in ZOO} | _ALIASES
    return spellings.get(plain, name)


def build(
    name: str,
    *,
    classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    layers: Sequence[str] | None = None,
    pretrained: bool = False,
    seed: int | None = None,
) -> FeatureNet:
    """A network by name, run once on a blank image so that what does not fit is found before any work.

    Args:
        name: one of :func:`names`, ``"torchvision/NAME"``, ``"timm/NAME"``, or ``"package.module:factory"``, which is
            called as ``factory(num_classes=classes)``.
        classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image.
        layers: paths of the modules whose outputs are the maps. Unless given: the zoo's stages after their last
            activation (each class says which); of torchvision the four stages; of timm what its ``feature_info`` names,
            for transformers of one resolution four evenly spaced blocks; else by the rule of ``stages.stage_ends``.
        pretrained: weights of torchvision or timm, which these fetch where they are not at hand.
        seed: of the initial weights; the global generator is left alone. Unless given, that generator is used.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        ValueError: an unknown name or layer (with the nearest ones), a size the network cannot take, a factory that
            cannot be imported, weights that are not to be had.
    """
    for argument, value in (("classes", classes), ("in_channels", in_channels), ("image_size", min(image_size))):
        if value < 1:
            raise ValueError(f"{argument} must be positive, got {value}")
    wanted = Wanted(classes, in_channels, (image_size[0], image_size[1]), pretrained)
    with _seeded(seed):
        found = _find(name, wanted)
    image = torch.zeros(1, in_channels, *wanted.image_size)
    found.net.eval()
    if layers is None:
        found = settle(name, found, image)
    chosen = found.layers if layers is None else layers
    net = FeatureNet(found.net, chosen or (), prefix_tokens=found.prefix_tokens, nhwc=found.nhwc)
    _try(name, net, image, classes)
    return net.train()


def _find(name: str, wanted: Wanted) -> Found:
    source, slash, rest = name.partition("/")
    if slash and source in _SOURCES:
        return _SOURCES[source](rest, wanted)
    if ":" in name:
        return from_factory(name, wanted)
    entry = ZOO.get(canonical_name(name))
    if entry is None:
        kinds = "torchvision/NAME, timm/NAME and package.module:factory are the other forms"
        raise ValueError(f"no network '{name}' in the zoo{nearest(name, ZOO)}; {kinds}")
    if wanted.pretrained:
        raise ValueError(f"pretrained: the zoo's {name} has no weights to fetch; load a file instead")
    return Found(entry.make(wanted), list(entry.layers))


@torch.no_grad()
def _try(name: str, net: FeatureNet, image: Tensor, classes: int) -> None:
    size = " x ".join(str(n) for n in image.shape[1:])
    net.eval()
    try:
        logits, maps = net(image)
    except ValueError:
        # of a layer; it names it
        raise
    except Exception as error:
        raise ValueError(f"{name} does not run on images of {size}: {first_line(error)}") from error
    if logits.shape != (1, classes):
        raise ValueError(f"{name} must give logits [1, {classes}] for one image, got {list(logits.shape)}")
    for layer, x in zip(net.layers, maps, strict=True):
        if x.numel() == 0:
            raise ValueError(f"{name}: images of {size} are too small, '{layer}' gives {list(x.shape)}")
    # some transformers add their class token only after the blocks
    counts = [x.shape[1] for x in maps if x.ndim == 3]
    if any(_is_square(n + net.prefix_tokens) and not _is_square(n) for n in counts):
        net.drop_prefix(0)


def _is_square(n: int) -> bool:
    return isqrt(n) ** 2 == n


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    # networks are made on the CPU
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
