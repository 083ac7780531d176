"""What a frozen teacher's forward pass launches, as people write it and prepared. Runs in a child process."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torchvision.models import resnet34

import semckd_kernels as sk
from semckd_kernels.training.models import cifar_resnet

from .problems import NHWC, TYPES
from .records import Log

NETWORKS = {"ResNet-32x4": (lambda: cifar_resnet(32, 64, 100, stem=32), 32), "ResNet-34": (resnet34, 224)}
KINDS = ("fp32", "bf16")


def launches(net: nn.Module, images: torch.Tensor) -> int:
    """Of the second forward pass."""
    with torch.no_grad():
        net(images)
        with Log() as log:
            net(images)
    assert not log.of("illegal", "unsupported", "sync")
    return len(log.launches)


def teachers() -> dict[str, dict[str, int]]:
    """Launches by network and type: ``plain`` and ``prepared``."""
    found = {}
    for name, (make, side) in NETWORKS.items():
        net = make().to("cuda", memory_format=NHWC).eval()
        for kind in KINDS:
            images = torch.zeros(4, 3, side, side, dtype=TYPES[kind], device="cuda").to(memory_format=NHWC)
            plain = copy.deepcopy(net).to(TYPES[kind])
            prepared = sk.prepare_teacher(plain)
            found[f"{name} {kind}"] = {"plain": launches(plain, images), "prepared": launches(prepared, images)}
    return found
