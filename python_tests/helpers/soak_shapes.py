"""Steps of changing shapes: memory must stay flat.

    python python_tests/helpers/soak_shapes.py                 10,000 steps, a few minutes
    python python_tests/helpers/soak_shapes.py --steps 500

Each step draws: batch size, height and width of each map, type, autocast, training or eval mode, the kind of call
(criterion, attention and loss, functions), and what is changed about the modules now and then (hooks, frozen norms), so
that each cache that goes by shapes, modules or warnings is met.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import semckd_kernels as sk
from semckd_kernels import functional

S_N, T_N, BATCH = [6, 10], [8, 12], 12
# what is served by kernels alone, but for bf16's convolutions where the vendor has bf16 products
FUSED = ("criterion", "functions", "frozen", "refused")
ALL = (*FUSED, "criterion", "criterion", "criterion", "attention", "hook")


def resident_mb() -> float:
    """Memory of this process that is in use, with what the allocator keeps for later given back."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Soak:
    """Random steps of one criterion, and of one attention module with the loss.

    Args:
        kinds: of steps.
        largest: height and width.
        different: after so many steps their shapes and kinds repeat, if at all.
    """

    def __init__(self, kinds: Sequence[str] = ALL, largest: int = 24, different: int | None = None) -> None:
        seed, self.taken, self.different = 0, 0, different
        self.random, self.kinds, self.largest = random.Random(seed), kinds, largest
        torch.manual_seed(seed)
        self.criterion, self.attention = sk.SemCKD(BATCH, S_N, T_N), sk.SelfA(BATCH, S_N, T_N)

    def maps(self, channels: list[int], batch: int, gradient: bool) -> list[Tensor]:
        def side() -> int:
            return self.random.randint(1, self.largest)

        maps = [torch.randn(batch, c, side(), side()) for c in channels]
        if self.random.random() < 0.3:
            maps = [x.to(memory_format=torch.channels_last) for x in maps]
        return [x.requires_grad_(gradient) for x in maps]

    def step(self) -> None:
        if self.different is not None:
            self.random.seed(self.taken % self.different)
        self.taken += 1
        batch = self.random.randint(2, BATCH)
        feat_s, feat_t = self.maps(S_N, batch, True), self.maps(T_N, batch, False)
        kind = self.random.choice(self.kinds)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.random.random() < 0.2):
            if kind == "attention":
                loss = sk.SemCKDLoss()(*self.attention(feat_s, feat_t))
            elif kind == "functions":
                rows = [[torch.randn(x.shape, requires_grad=True) for _ in T_N] for x in feat_s]
                loss = functional.pair_mse(rows, [[x.detach() for x in row] for row in rows]).sum()
            else:
                loss = self.call(kind, feat_s, feat_t)
        loss.backward()
        for module in (self.criterion, self.attention):
            module.zero_grad(set_to_none=True)

    def call(self, kind: str, feat_s: list[Tensor], feat_t: list[Tensor]) -> Tensor:
        norms = [m for m in self.criterion.modules() if isinstance(m, nn.BatchNorm2d)]
        self.criterion.train(self.random.random() < 0.8)
        if kind == "frozen":
            for norm in norms:
                norm.train(self.random.random() < 0.5)
        if kind == "refused":
            with contextlib.suppress(ValueError):
                self.criterion(feat_s, [x[:1] for x in feat_t])
        hook = norms[1].register_forward_hook(lambda *_: None) if kind == "hook" else None
        loss = self.criterion(feat_s, feat_t).loss
        if hook is not None:
            hook.remove()
        return loss


def growth_mb(
    steps: int, warm_up: int, kinds: Sequence[str] = ALL, largest: int = 24, different: int | None = None
) -> float:
    """By how much memory grows over ``steps`` steps.

    Args:
        warm_up: steps before: scratch memory is kept for the largest sizes so far, and torch keeps code for each shape
            of a convolution of its own, 1,024 of them.
        kinds, largest, different: see :class:`Soak`.
    """
    soak = Soak(kinds, largest, different)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(warm_up):
            soak.step()
        before = resident_mb()
        for _ in range(steps):
            soak.step()
    return resident_mb() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="steps to take (default: %(default)s)")
    print(f"memory grew by {growth_mb(parser.parse_args().steps, warm_up=1000):.1f} MB")
