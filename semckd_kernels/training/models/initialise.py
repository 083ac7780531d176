"""The initialisation that the CIFAR networks share."""

from __future__ import annotations

from torch import nn


def he_normal(net: nn.Module) -> None:
    """Convolutions from He et al.'s normal distribution over their outgoing connections, their biases zero.

    He et al., "Delving Deep into Rectifiers", ICCV 2015. BatchNorms keep PyTorch's ones and zeros.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(layer: nn.Linear) -> None:
    """A classifier that begins next to zero, so that all classes are equally likely."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
