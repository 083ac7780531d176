"""VGGs for small images."""

from __future__ import annotations

from torch import Tensor, nn

from .initialise import he_normal, small_linear

# of the second to fifth block; the first is the stem
VGG_LAYERS = ("relu1", "relu2", "relu3", "relu4")
# convolutions of the five blocks; they and the linear layer make the number in the name
VGG_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)
# side of an image from which on the fourth block is followed by a pooling as well
_FOURTH_POOL = 64


class VGG(nn.Module):
    """Five blocks of conv3x3, BatchNorm, ReLU with max pooling between them, and one linear layer.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the form
    that distillation's CIFAR experiments share: a linear layer on the mean over pixels for the three large ones, and no
    pooling after the fourth block of images smaller than 64 pixels, so that the fifth still has 4 x 4 at CIFAR's 32.

    Args:
        depth: 8, 11, 13, 16 or 19.
        classes: number of logits.
        in_channels: channels of an image.
        side: smaller side of the images, in pixels.

    Shape:
        ``[B, in_channels, H, W]`` to logits ``[B, classes]``; maps at 1/2, 1/4, 1/8 and 1/8 (1/16 from 64 pixels on) of
        the resolution.
    """

    def __init__(self, depth: int, classes: int, in_channels: int = 3, side: int = 32) -> None:
        super().__init__()
        inner = in_channels
        for n, (convolutions, outer) in enumerate(zip(VGG_CONVOLUTIONS[depth], _CHANNELS, strict=True)):
            self.add_module(f"block{n}", _block(convolutions, inner, outer))
            # the block's last ReLU stands beside it, where it has a name that does not depend on the depth
            self.add_module(f"relu{n}", nn.ReLU(inplace=True))
            inner = outer
        self.pool = nn.MaxPool2d(2)
        self.pools = 4 if side >= _FOURTH_POOL else 3
        self.classifier = nn.Linear(inner, classes)
        he_normal(self)
        small_linear(self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for n in range(len(_CHANNELS)):
            x = self.get_submodule(f"relu{n}")(self.get_submodule(f"block{n}")(x))
            if n < self.pools:
                x = self.pool(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _block(convolutions: int, inner: int, outer: int) -> nn.Sequential:
    """conv, BatchNorm, ReLU, ..., conv, BatchNorm: all but the last ReLU."""
    parts: list[nn.Module] = []
    for n in range(convolutions):
        parts += [nn.Conv2d(outer if n else inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])
