"""Wide ResNets for small images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .initialise import he_normal

# what the last sum of each stage becomes: the activation that opens the next stage, and the net's last one
WIDE_RESNET_LAYERS = ("block2.layer.0.relu1", "block3.layer.0.relu1", "relu")


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, conv3x3, twice, beside a shortcut.

    Where channels or resolution change, the shortcut is a 1x1 convolution of the first activation; elsewhere it is the
    block's input itself.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        # the name is that of the family's weight files
        self.convShortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if (inner, stride) != (outer, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out


class Stage(nn.Module):
    """Blocks of one resolution; the level ``layer`` is that of the family's weight files."""

    def __init__(self, blocks: int, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(inner, outer, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(outer, outer, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of pre-activation blocks, ``16 * width``, ``32 * width``, ``64 * width`` channels.

    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. ``6n + 4`` layers, ``n`` blocks a stage, no dropout.

    A stage ends in a sum, which no activation follows inside the stage: ``WIDE_RESNET_LAYERS`` names the BatchNorm-ReLU
    that the sum runs into, and so gives maps of the stage's channels and resolution that are not negative. The sums
    themselves, which the family's own trainers take, are ``("block1", "block2", "block3")``.

    Args:
        depth: number of weighted layers, 10, 16, 22, 28, 34, 40, ...
        width: factor on the channels of the ordinary ResNet.
        classes: number of logits.
        in_channels: channels of an image.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``; maps at 1, 1/2 and 1/4 of the resolution.

    Raises:
        ValueError: depth is not ``6n + 4``.
    """

    def __init__(self, depth: int, width: int, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        stages = (Stage(blocks, *ends, stride) for ends, stride in zip(pairwise(channels), (1, 2, 2), strict=True))
        self.block1, self.block2, self.block3 = stages
        self.bn1 = nn.BatchNorm2d(channels[-1])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels[-1], classes)
        he_normal(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(self.relu(self.bn1(x)).mean((2, 3)))
        return logits
