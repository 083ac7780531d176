"""ResNets for small images, made of torchvision's parts."""

from __future__ import annotations

import torch
from torch import nn
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
