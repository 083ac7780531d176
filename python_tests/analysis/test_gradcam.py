"""Grad-CAM against the formula with hooks of our own."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semckd_kernels.analysis import gradcam
from semckd_kernels.analysis.gradcam import grad_cam
from semckd_kernels.training.models import FeatureNet


class Tokens(nn.Module):
    """A map as tokens ``[B, 1 + N, C]`` with a class token in front, and a mixing of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 6, 2, stride=2)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
        self.mix = nn.Linear(17, 17)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        logits: Tensor = self.head(self.mix(tokens.transpose(1, 2)).transpose(1, 2)[:, 0])
        return logits


class ChannelsBehind(nn.Module):
    """A network whose layers give ``[B, h, w, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Conv2d(1, 6, 2, stride=2), nn.Linear(6, 6), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embed(x).permute(0, 2, 3, 1)).flatten(1))
        return logits


def convolutions() -> FeatureNet:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )
    return FeatureNet(net, ["0", "1"])


def transformer() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(Tokens(), ["block"], prefix_tokens=1)


def channels_behind() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(ChannelsBehind(), ["block"], nhwc=True)


NETS = {"convolutions": convolutions, "tokens": transformer, "channels behind": channels_behind}


def by_hand(net: FeatureNet, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """One image after the other, with a hook that keeps the layer's output."""
    kept: list[Tensor] = []
    handle = dict(net.net.named_modules())[layer].register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    heats = []
    for image, label in zip(images, target, strict=True):
        kept.clear()
        logits = net(image[None]).logits
        (gradient,) = torch.autograd.grad(logits[0, label], kept)
        activation = kept[0][0]
        if activation.dim() == 2:
            activation, gradient = (x[1:].T.reshape(6, 4, 4) for x in (activation, gradient[0]))
        elif net.nhwc:
            activation, gradient = activation.permute(2, 0, 1), gradient[0].permute(2, 0, 1)
        else:
            gradient = gradient[0]
        heat = torch.relu((gradient.mean((1, 2))[:, None, None] * activation).sum(0))
        heat = F.interpolate(heat[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        heats.append(heat / heat.max() if heat.max() > 0 else heat)
    handle.remove()
    return torch.stack(heats).detach()


@pytest.mark.parametrize("name", NETS)
def test_grad_cam_is_the_hand_formula(name: str) -> None:
    net = NETS[name]().eval()
    images, target = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    found = grad_cam(net, images, target)
    torch.testing.assert_close(found.heat, by_hand(net, images, target, net.layers[-1]))
    torch.testing.assert_close(found.probability, net(images).logits.softmax(1).detach())
    # not the trivial picture
    assert found.heat.amax((1, 2)).max() == 1.0
    assert found.heat.min() == 0.0


def test_another_layer() -> None:
    net = convolutions().eval()
    images, target = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    found = grad_cam(net, images, target, "0")
    torch.testing.assert_close(found.heat, by_hand(net, images, target, "0"))
    assert not torch.allclose(found.heat, grad_cam(net, images, target).heat)


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_left_changed(frozen: bool) -> None:
    net = convolutions().train().requires_grad_(not frozen)
    net.net[0].eval()
    images = torch.randn(3, 1, 8, 8)
    modes = [module.training for module in net.modules()]
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    hooks = sum(len(module._forward_hooks) for module in net.modules())
    # in no_grad mode as well: its gradients are its own business
    with torch.no_grad():
        grad_cam(net, images, torch.tensor([0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad is not frozen for p in net.parameters())
    assert images.grad is None
    assert not images.requires_grad
    assert sum(len(module._forward_hooks) for module in net.modules()) == hooks


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("convolutions", "9", "layer must be a module of the network, such as '1', got '9'"),
        ("convolutions", "3", r"layer '3' must give a map .* got \[2, 96\]"),
        ("tokens", "head", r"layer 'head' must give a map .* got \[2, 5\]"),
    ],
)
def test_layers_that_give_no_picture(name: str, layer: str, message: str) -> None:
    net = NETS[name]()
    with pytest.raises(ValueError, match=message):
        grad_cam(net, torch.randn(2, 1, 8, 8), torch.tensor([0, 1]), layer)
    assert all(module.training for module in net.modules())


def test_without_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def missing(name: str, *rest: Any) -> Any:
        return None if name == "captum" else find(name, *rest)

    assert gradcam.captum_is_installed()
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert not gradcam.captum_is_installed()
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r'pip install "semckd-kernels\[plot\]"'):
        grad_cam(convolutions(), torch.randn(1, 1, 8, 8), torch.tensor([0]))
