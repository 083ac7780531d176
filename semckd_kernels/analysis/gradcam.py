"""Grad-CAM: which pixels of an image speak for a class, in the eyes of the teacher and of each student.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, as
computed by captum's ``LayerGradCam``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..install import pip_install
from ..training.models import FeatureNet
from .runs import evaluation

MISSING = f"Grad-CAM needs captum: {pip_install('semckd-kernels[plot]')}"


class Cam(NamedTuple):
    """Heat maps of one network on N images, and its answers."""

    heat: Tensor  # [N, H, W], from 0 to 1, the largest value of each image 1 (0 where no pixel speaks for the class)
    probability: Tensor  # [N, classes]


def captum_is_installed() -> bool:
    """Whether :func:`grad_cam` can be computed here."""
    return importlib.util.find_spec("captum") is not None


def grad_cam(net: FeatureNet, images: Tensor, target: Tensor, layer: str | None = None) -> Cam:
    r"""Grad-CAM of a network in evaluation mode.

    .. math::
        \text{heat}_{xy} = \mathrm{ReLU}\Big(\sum_c A_{cxy} \cdot \mathop{\mathrm{mean}}_{x'y'}
        \frac{\partial z_{\text{target}}}{\partial A_{cx'y'}}\Big)

    with A the layer's map and z the logits, enlarged to the image (bilinear) and divided by its largest value. Tokens
    ``[B, N, C]`` are taken as a map of sqrt(N) x sqrt(N), without the network's prefix tokens.

    Modes, gradients and parameters of the network are afterwards what they were; no random number is drawn.

    Args:
        net: any network with named layers.
        images: ``[N, C, H, W]``, normalised as in training.
        target: class of each image, ``[N]`` int64.
        layer: module path; the last of the network's layers unless given.

    Raises:
        ValueError: there is no such layer, or its output is neither a map nor tokens of a square.
        ImportError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise ImportError(MISSING) from error
    with evaluation(net), _tapped(net, layer or net.layers[-1]) as tap, torch.enable_grad():
        heat = LayerGradCam(_Logits(net), tap).attribute(images, target=target, relu_attributions=True)
        with torch.no_grad():
            probability = net(images).logits.float().softmax(1)
    heat = F.interpolate(heat.detach().float(), images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    peak = heat.amax((1, 2), keepdim=True)
    return Cam(heat / torch.where(peak > 0, peak, torch.ones_like(peak)), probability)


class _Logits(nn.Module):
    """A network that gives logits alone, as captum expects."""

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images).logits
        return logits


@contextmanager
def _tapped(net: FeatureNet, layer: str) -> Iterator[nn.Module]:
    """A module that the layer's output passes through as a map ``[B, C, h, w]``, whatever form the layer gives it."""
    modules = dict(net.net.named_modules())
    if layer not in modules:
        raise ValueError(f"layer must be a module of the network, such as '{net.layers[-1]}', got '{layer}'")
    tap = nn.Identity()

    def through(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if output.dim() == 4:
            if net.nhwc:
                return tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
            return tap(output)  # type: ignore[no-any-return]
        side = _side(layer, output, net.prefix_tokens)
        prefix, tokens = output[:, : net.prefix_tokens], output[:, net.prefix_tokens :]
        grid: Tensor = tap(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], 1)

    handle = modules[layer].register_forward_hook(through)
    try:
        yield tap
    finally:
        handle.remove()


def _side(layer: str, output: Tensor, prefix: int) -> int:
    """Side of the square that the tokens of an image make."""
    count = output.shape[1] - prefix if output.dim() == 3 else 0
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        raise ValueError(
            f"layer '{layer}' must give a map [B, c, h, w] or a square number of tokens [B, N, C], got "
            f"{list(output.shape)}"
        )
    return side
