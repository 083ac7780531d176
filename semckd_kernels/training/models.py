"""Networks of torchvision in their CIFAR form, and feature maps out of any network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

CIFAR_RESNET_LAYERS = ("layer1", "layer2", "layer3")


def cifar_resnet(depth: int, width: int, classes: int, in_channels: int = 3, stem: int | None = None) -> nn.Module:
    """torchvision's ResNet as used for small images: 3x3 stem without pooling, three stages, narrow.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: ``6n + 2`` layers, ``n`` basic
    blocks a stage, stages of ``width``, ``2 * width`` and ``4 * width`` channels, the last two of stride 2 (with the
    1x1 convolution of torchvision on their shortcuts). The stages are ``layer1`` to ``layer3``.

    Args:
        depth: number of weighted layers, 8, 14, 20, ...
        width: channels of the first stage; 16 in the paper.
        classes: number of logits.
        in_channels: channels of an image.
        stem: channels before the first stage; ``width`` unless given. Distillation's ResNet-8x4 and ResNet-32x4 have
            a width of 64 and a stem of 32.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
    # the parts of the ImageNet form are all replaced: on the meta device they cost nothing
    with torch.device("meta"):
        net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.inplanes = stem or width
    net.conv1 = nn.Conv2d(in_channels, net.inplanes, kernel_size=3, padding=1, bias=False)
    net.bn1 = nn.BatchNorm2d(net.inplanes)
    net.maxpool = nn.Identity()
    net.layer1 = net._make_layer(BasicBlock, width, blocks)
    net.layer2 = net._make_layer(BasicBlock, 2 * width, blocks, stride=2)
    net.layer3 = net._make_layer(BasicBlock, 4 * width, blocks, stride=2)
    net.layer4 = nn.Identity()
    net.fc = nn.Linear(4 * width, classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    # the annotation holds whether or not torchvision's types are visible
    result: nn.Module = net
    return result


class Output(NamedTuple):
    """What one forward pass gives: logits ``[B, classes]`` and feature maps ``[B, c_l, h_l, w_l]`` in layer order."""

    logits: Tensor
    maps: list[Tensor]


class FeatureNet(nn.Module):
    """A network whose forward pass gives the outputs of some of its modules beside its logits.

    Forward hooks keep the outputs, so nothing is computed twice and the network itself is unchanged. Nothing may
    overwrite such an output in place afterwards (torchvision's ResNets do not).

    Args:
        net: any network that maps images to logits.
        layers: paths of modules inside ``net``, such as ``"layer1"`` or ``"features.3"``.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.layers = tuple(layers)
        self._maps: dict[str, Tensor] = {}
        modules = dict(net.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f"layers: the network has no module '{name}'")
            modules[name].register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._maps[name] = output

    def forward(self, images: Tensor) -> Output:
        """``[B, C, H, W]`` to logits and maps."""
        try:
            logits = self.net(images)
            return Output(logits, [self._maps[name] for name in self.layers])
        finally:
            # a reference kept here would keep a step's whole graph alive
            self._maps.clear()

    @torch.no_grad()
    def map_shapes(self, images: Tensor) -> list[torch.Size]:
        """Shapes ``[c_l, h_l, w_l]`` of the maps, found by a forward pass that changes no statistics."""
        training = self.training
        self.eval()
        try:
            return [x.shape[1:] for x in self(images[:1]).maps]
        finally:
            self.train(training)

    def parameter_count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
