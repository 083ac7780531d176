"""What the ledger counts: one forward and backward of a criterion, at the sizes of two network pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import semckd_kernels as sk

NHWC = torch.channels_last


@dataclass(frozen=True)
class Network:
    """Channels and side of each layer's maps; student and teacher have the same."""

    channels: tuple[int, ...]
    sides: tuple[int, ...]


NETWORKS = {
    # ResNet-32x4 -> ResNet-8x4
    "cifar": Network((64, 128, 256), (32, 16, 8)),
    # ResNet-34 -> ResNet-18
    "imagenet": Network((64, 128, 256, 512), (56, 28, 14, 7)),
}
MODES = ("train", "graph", "no_grad")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DropIn(nn.Module):
    """The official modules with our loss: ``SelfA`` and ``SemCKDLoss``."""

    def __init__(self, batch: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.attention = sk.SelfA(len(channels), len(channels), batch, channels, channels)
        self.loss = sk.SemCKDLoss()

    def forward(self, feat_s: list[Tensor], feat_t: list[Tensor]) -> Tensor:
        loss: Tensor = self.loss(*self.attention(feat_s, feat_t))
        return loss


def _ours(batch: int, channels: Sequence[int]) -> nn.Module:
    return sk.SemCKD(batch, channels, channels, backend="triton")


def _plain(batch: int, channels: Sequence[int]) -> nn.Module:
    return sk.SemCKD(batch, channels, channels, backend="reference")


MODULES: dict[str, Callable[[int, Sequence[int]], nn.Module]] = {"ours": _ours, "plain": _plain, "drop_in": DropIn}


@dataclass(frozen=True)
class Problem:
    """One row of the ledger.

    Attributes:
        what: ``ours``, ``plain`` (the reference, in the layout of the maps) or ``drop_in``.
        network: a key of ``NETWORKS``.
        kind: a key of ``TYPES``; half precision is autocast.
        mode: ``train``, a forward and backward; ``graph``, the same as it is captured; ``no_grad``, a forward alone.
        nhwc: whether maps (and the plain code's parameters) are channels_last.
        shrink: divides the sides of the maps.
    """

    what: str
    network: str
    kind: str
    mode: str = "train"
    nhwc: bool = True
    batch: int = 64
    shrink: int = 1

    @property
    def key(self) -> str:
        """Its name in the budgets."""
        return f"{self.what} {self.network} {self.kind} {self.mode}"

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.kind]

    def maps(self, device: str) -> list[Tensor]:
        network = NETWORKS[self.network]
        sides = [max(side // self.shrink, 1) for side in network.sides]
        layout = NHWC if self.nhwc else torch.contiguous_format
        shapes = [(self.batch, c, side, side) for c, side in zip(network.channels, sides, strict=True)]
        return [torch.empty(shape, dtype=self.dtype, device=device, memory_format=layout) for shape in shapes]


class Step:
    """What a problem counts, to be called again and again; gradients are fresh each time."""

    def __init__(self, problem: Problem, device: str = "cuda") -> None:
        self.problem = problem
        module = MODULES[problem.what](problem.batch, NETWORKS[problem.network].channels).to(device)
        # our own takes parameters of any layout
        self.module = module.to(memory_format=NHWC) if problem.nhwc and problem.what != "ours" else module
        self.feat_s = [x.requires_grad_() for x in problem.maps(device)]
        self.feat_t = problem.maps(device)
        self.leaves = [*self.feat_s, *self.module.parameters()]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = self.problem.kind != "fp32"
        # casts that are cached outside a graph are not in it
        return torch.autocast("cuda", self.problem.dtype if half else torch.bfloat16, enabled=half, cache_enabled=False)

    def __call__(self) -> None:
        for x in self.leaves:
            x.grad = None
        with self.autocast(), torch.set_grad_enabled(self.problem.mode != "no_grad"):
            out = self.module(self.feat_s, self.feat_t)
        loss: Tensor = out if isinstance(out, Tensor) else out.loss
        if loss.requires_grad:
            loss.backward()

    def capture(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, after it has run once."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph
