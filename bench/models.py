"""The networks behind the names in ``shapes``, with the maps that SemCKD takes from them: needs torchvision.

CIFAR's networks have 100 classes and ImageNet's 1000. ``python_tests/test_bench.py`` holds their maps to ``shapes`` and
their numbers of parameters to those that papers give.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torch import nn
from torchvision.models import VisionTransformer, resnet18, resnet34

from semckd_kernels.training.models import CIFAR_RESNET_LAYERS, FeatureNet, cifar_resnet


class Networks(NamedTuple):
    """How to make a student and a teacher, and what they are fed."""

    student: Callable[[], FeatureNet]
    teacher: Callable[[], FeatureNet]
    side: int  # of the images
    classes: int
    beta: float  # weight of SemCKD's term; the paper's for that data set
    class_token: bool = False  # maps are tokens, the first of which is the class token


def resnet_nx4(depth: int) -> FeatureNet:
    """ResNet-8x4, ResNet-32x4: stages of four times the width, behind a stem of twice."""
    return FeatureNet(cifar_resnet(depth, 64, 100, stem=32), CIFAR_RESNET_LAYERS)


def narrow_resnet(depth: int) -> FeatureNet:
    """Nothing but overhead."""
    return FeatureNet(cifar_resnet(depth, 8, 10), CIFAR_RESNET_LAYERS)


def vgg(convolutions: int) -> FeatureNet:
    """VGG for 32 x 32 images, BatchNorm, five blocks; 1 convolution a block is VGG-8, 2 are VGG-13.

    Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, with one linear layer for three. The fourth
    block is not followed by pooling, so that the fifth still has 4 x 4 pixels. The first block is the stem; the maps
    are those of the other four, after the last ReLU.
    """
    channels = (3, 64, 128, 256, 512, 512)
    parts: list[nn.Module] = []
    ends = []
    for block, (inner, outer) in enumerate(pairwise(channels)):
        for n in range(convolutions):
            convolution = nn.Conv2d(outer if n else inner, outer, 3, padding=1)
            parts += [convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
        ends.append(f"features.{len(parts) - 1}")
        if block < 3:
            parts.append(nn.MaxPool2d(2))
    net = nn.Sequential()
    net.features = nn.Sequential(*parts)
    net.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 100))
    return FeatureNet(net, ends[1:])


def imagenet_resnet(make: Callable[[], nn.Module]) -> FeatureNet:
    return FeatureNet(make(), ("layer1", "layer2", "layer3", "layer4"))


def vit_tiny() -> FeatureNet:
    """ViT-Ti/16: Touvron et al., "Training data-efficient image transformers", ICML 2021; tokens after each block."""
    net = VisionTransformer(224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=4 * 192)
    return FeatureNet(net, [f"encoder.layers.encoder_layer_{n}" for n in range(12)])


NETWORKS = {
    "resnet32x4-resnet8x4": Networks(lambda: resnet_nx4(8), lambda: resnet_nx4(32), 32, 100, 400.0),
    "vgg13-vgg8": Networks(lambda: vgg(1), lambda: vgg(2), 32, 100, 400.0),
    "resnet34-resnet18-imagenet": Networks(
        lambda: imagenet_resnet(resnet18), lambda: imagenet_resnet(resnet34), 224, 1000, 50.0
    ),
    "vit_tiny-vit_tiny": Networks(vit_tiny, vit_tiny, 224, 1000, 50.0, class_token=True),
    "overhead": Networks(lambda: narrow_resnet(8), lambda: narrow_resnet(14), 8, 10, 50.0),
}
