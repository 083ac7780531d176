"""MobileNetV2 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from .initialise import he_normal, small_linear

# the last stage of each resolution
MOBILENET_LAYERS = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
# expansion, channels at full width, blocks, stride: table 2 of the paper, but for the second row's stride of 2
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; a shortcut where the shapes allow one."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.shortcut = stride == 1 and inner == outer
        self.conv = nn.Sequential(
            *_conv_bn_relu(inner, wide, 1),
            *_conv_bn_relu(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 as distillation's CIFAR experiments share it.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, with ReLU for ReLU6, an
    expansion convolution in the first stage too (where it expands by 1), one stride less and a head of 1280 channels at
    any width up to 1. The family's ``mobile_half`` has a width of 0.5.

    A stage ends in a linear bottleneck: by the architecture's design no activation follows it, so the maps are those
    bottlenecks, as in the family's own trainers.

    Args:
        classes: number of logits.
        in_channels: channels of an image.
        width: factor on the channels of every stage.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``; maps at 1/2, 1/4, 1/8 and 1/16 of the resolution.
    """

    def __init__(self, classes: int, in_channels: int = 3, width: float = 0.5) -> None:
        super().__init__()
        inner = int(_STEM * width)
        self.conv1 = nn.Sequential(*_conv_bn_relu(in_channels, inner, 3, stride=2))
        self.blocks = nn.Sequential()
        for expansion, channels, blocks, stride in _STAGES:
            stage = nn.Sequential()
            for n in range(blocks):
                stage.append(InvertedResidual(inner, int(channels * width), 1 if n else stride, expansion))
                inner = int(channels * width)
            self.blocks.append(stage)
        head = int(_HEAD * max(width, 1.0))
        self.conv2 = nn.Sequential(*_conv_bn_relu(inner, head, 1))
        linear = nn.Linear(head, classes)
        self.classifier = nn.Sequential(linear)
        he_normal(self)
        small_linear(linear)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(images)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _conv_bn_relu(inner: int, outer: int, side: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inner, outer, side, stride, padding=side // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
