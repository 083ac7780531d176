"""ShuffleNetV1 and ShuffleNetV2 for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

SHUFFLENET_LAYERS = ("layer1", "layer2", "layer3")
_STEM = 24
_GROUPS = 3
# blocks of the three stages, both versions
_BLOCKS = (4, 8, 4)
_V1_CHANNELS = (240, 480, 960)
_V2_CHANNELS = (116, 232, 464)
_V2_HEAD = 1024


class GroupedBottleneck(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1; added to its input, or at stride 2 put beside it.

    ``outer`` counts all channels, at stride 2 with those of the pooled input among them. The first convolution of the
    net's first block is not grouped: its input has too few channels.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        new = outer - inner if stride == 2 else outer
        mid, groups = new // 4, 1 if inner == _STEM else _GROUPS
        self.stride = stride
        self.conv1 = nn.Conv2d(inner, mid, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.shuffle1 = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, new, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(new)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle1(relu(self.bn1(self.conv1(x))))
        # the paper has no activation after the depthwise convolution; the family's form, and so its weights, has
        out = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        rest = self.shortcut(x)
        return relu(torch.cat((out, rest), 1) if self.stride == 2 else out + rest)


class ShuffleNetV1(nn.Module):
    """ShuffleNet with 3 groups as distillation's CIFAR experiments share it.

    Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018, with
    a 1x1 stem without stride or pooling.

    Args:
        classes: number of logits.
        in_channels: channels of an image.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``; maps at 1/2, 1/4 and 1/8 of the resolution.
    """

    def __init__(self, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        inner, stages = _STEM, []
        for outer, blocks in zip(_V1_CHANNELS, _BLOCKS, strict=True):
            rest = (GroupedBottleneck(outer, outer, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(GroupedBottleneck(inner, outer, 2), *rest))
            inner = outer
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inner, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class SplitBlock(nn.Module):
    """Half of the channels pass as they are, half go through 1x1, depthwise 3x3, 1x1; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, 1)
        worked = relu(self.bn1(self.conv1(worked)))
        worked = relu(self.bn3(self.conv3(self.bn2(self.conv2(worked)))))
        out: Tensor = self.shuffle(torch.cat((passed, worked), 1))
        return out


class DownBlock(nn.Module):
    """Two branches of stride 2, each half of the output's channels; then all are shuffled."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        half = outer // 2
        # depthwise 3x3, 1x1
        self.conv1 = nn.Conv2d(inner, inner, 3, 2, padding=1, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        # 1x1, depthwise 3x3, 1x1
        self.conv3 = nn.Conv2d(inner, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = relu(self.bn3(self.conv3(x)))
        right = relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        out: Tensor = self.shuffle(torch.cat((left, right), 1))
        return out


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 of width 1 as distillation's CIFAR experiments share it.

    Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, with a 1x1 stem
    without stride or pooling.

    Args:
        classes: number of logits.
        in_channels: channels of an image.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``; maps at 1/2, 1/4 and 1/8 of the resolution.
    """

    def __init__(self, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        inner, stages = _STEM, []
        for outer, blocks in zip(_V2_CHANNELS, _BLOCKS, strict=True):
            stages.append(nn.Sequential(DownBlock(inner, outer), *(SplitBlock(outer) for _ in range(blocks - 1))))
            inner = outer
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(inner, _V2_HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_V2_HEAD)
        self.linear = nn.Linear(_V2_HEAD, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
