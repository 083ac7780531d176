"""Maps and modules for tests of the whole criterion, and one call that gives everything a step leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import semckd_kernels as sk

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """Two networks' maps, and the batch size the attention is built for."""

    s_n: Sequence[int]
    t_n: Sequence[int]
    s_sizes: Sequence[Size]
    t_sizes: Sequence[Size]
    batch: int = 6
    batch_size: int = 8
    soft: float = 1.0

    def module(self, backend: str | None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> sk.SemCKD:
        torch.manual_seed(1)
        module = sk.SemCKD(self.batch_size, self.s_n, self.t_n, soft=self.soft, backend=backend)
        for name, parameter in module.named_parameters():
            # BatchNorms that are not the identity
            if ".regressor.1." in name or ".regressor.4." in name:
                torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
        return module.to(device, dtype)

    def maps(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Activations behind a ReLU, the student's with gradient."""
        generator = torch.Generator().manual_seed(seed)

        def make(channels: Sequence[int], sizes: Sequence[Size]) -> list[Tensor]:
            shapes = [(self.batch, c, *size) for c, size in zip(channels, sizes, strict=True)]
            return [torch.randn(shape, generator=generator).relu().to(device, dtype) for shape in shapes]

        return [x.requires_grad_() for x in make(self.s_n, self.s_sizes)], make(self.t_n, self.t_sizes)


CASES = {
    # every kind of pair: same size, pooled student, pooled teacher; ragged channels
    "square": Case([6, 10], [4, 8, 12], [(8, 8), (4, 4)], [(16, 16), (8, 8), (4, 4)]),
    "sizes that do not divide": Case([6, 10], [4, 8], [(7, 5), (4, 6)], [(9, 3), (5, 5)]),
    "one sample": Case([5], [3, 7], [(5, 4)], [(5, 4), (2, 3)], batch=1),
    "full batch, temperature": Case([16, 24], [16], [(4, 4), (2, 2)], [(4, 4)], batch=8, batch_size=8, soft=0.5),
    # from 128 channels between its convolutions on, the CPU's 3x3 works in larger tiles
    "many channels": Case([20], [64, 72], [(8, 8)], [(8, 8), (5, 4)], batch=4),
    "single pixels": Case([9], [5, 33], [(1, 1)], [(1, 1), (3, 3)], batch=7),
}


@dataclass
class Outcome:
    """Everything that one forward and backward pass leaves behind, by name."""

    tensors: dict[str, Tensor]

    def items(self) -> list[tuple[str, Tensor]]:
        return list(self.tensors.items())


def step(module: sk.SemCKD, feat_s: list[Tensor], feat_t: list[Tensor], upstream: float = -1.7) -> Outcome:
    """Forward, backward, and what they changed; ``module`` itself is left alone."""
    module = copy.deepcopy(module)
    loss, weight, mse = module(feat_s, feat_t)
    wanted = {f"d_feat_s[{i}]": x for i, x in enumerate(feat_s)} | dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(wanted.values()), torch.full_like(loss, upstream))
    named = {"loss": loss.detach(), "weight": weight, "pair_mse": mse, **dict(zip(wanted, gradients, strict=True))}
    return Outcome(named | {k: v.float() for k, v in module.named_buffers() if not k.endswith("num_batches_tracked")})


def converted(maps: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to(dtype).requires_grad_(x.requires_grad) for x in maps]
