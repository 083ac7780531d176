"""The CPU's kernels, one by one: what each is given, what it gives, and how much work that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from plain_algebra import BackwardCoefficients, BatchNorm
from stage_interface import PairSize
from tolerances import assert_close
from torch import Tensor

from .shapes import NetworkPair

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Arguments = dict[str, Any]
# a ReLU's input closer to zero than this could fall on its other side in another precision
MARGIN = 0.02


def sizes(pair: NetworkPair) -> dict[str, PairSize]:
    """The pairs of layers of equal depth by name, each size once."""
    depth = zip(pair.student, pair.teacher, strict=True)
    found = [PairSize(pair.batch, min(s[1], t[1]), min(s[2], t[2]), s[0], t[0]) for s, t in depth]
    return {f"{size.C}x{size.h}x{size.w}": size for size in found}


class Maker:
    """Random arguments of a stage."""

    def __init__(self, size: PairSize, dtype: torch.dtype, seed: int) -> None:
        self.size, self.dtype = size, dtype
        self.acc_dtype = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)

    def rows(self, channels: int) -> Tensor:
        size = self.size
        return self.normal(size.B, size.h, size.w, channels).to(self.dtype)

    def relu_rows(self, channels: int) -> Tensor:
        return self.rows(channels).relu_()

    def empty_rows(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        size = self.size
        return torch.zeros((size.B, size.h, size.w, channels), dtype=dtype or self.dtype)

    def vector(self, around: float = 0.0, spread: float = 1.0) -> Tensor:
        return (self.normal(self.size.K) * spread + around).to(self.acc_dtype)

    def matrix(self, out: int, given: int, *kernel: int) -> Tensor:
        fan_in = given * (9 if kernel else 1)
        return self.normal(out, given, *kernel).div_(fan_in**0.5).to(self.acc_dtype)


def _linear_relu(m: Maker) -> Arguments:
    K, c = m.size.K, m.size.c
    return {"x": m.relu_rows(c), "weight": m.matrix(K, c), "bias": m.vector(), "h": m.empty_rows(K)}


def _linear_relu_backward(m: Maker) -> Arguments:
    K, c = m.size.K, m.size.c
    maps = {"x": m.relu_rows(c), "h": m.relu_rows(K), "d_h": m.rows(K), "d_x": m.empty_rows(c, m.acc_dtype)}
    return {**maps, "weight": m.matrix(K, c), "accumulate": False}


def _conv3x3(m: Maker) -> Arguments:
    K = m.size.K
    return {"h": m.relu_rows(K), "weight": m.matrix(K, K, 3, 3), "statistics": True}


def _conv3x3_backward(m: Maker) -> Arguments:
    K = m.size.K
    maps = {"h": m.relu_rows(K), "z": m.rows(K), "d_h2": m.rows(K)}
    # as a BatchNorm's backward has them: the gradient, and a little of its input
    coefficients = BackwardCoefficients(m.vector(1.0, 0.1), m.vector(0.0, 0.1), m.vector(0.0, 0.1))
    return {**maps, "weight": m.matrix(K, K, 3, 3), "coefficients": coefficients}


def _end(m: Maker) -> Arguments:
    K, C = m.size.K, m.size.C
    z, mean, scale, beta = m.rows(K), m.vector(0.0, 0.1), m.vector(1.0, 0.1).abs_().add_(0.2), m.vector(0.0, 0.5)
    for n in range(len(z)):
        near = ((z[n].to(m.acc_dtype) - mean) * scale + beta).abs_() < MARGIN
        z[n] += near * (6 * MARGIN)
    # gamma is one
    norm = BatchNorm(mean, scale, scale, beta, batch_statistics=True)
    return {"z": z, "norm": norm, "weight": m.matrix(C, K), "y": m.relu_rows(C), "coef": None, "d_h": None}


def _end_with_gradients(m: Maker) -> Arguments:
    coef = m.normal(m.size.B).abs_().add_(0.1).to(m.acc_dtype)
    return {**_end(m), "coef": coef, "d_h": m.empty_rows(m.size.K)}


@dataclass(frozen=True)
class Kernel:
    """One stage in one direction.

    Args:
        name, direction: as they stand in the row.
        method: of :class:`stage_interface.Stages`.
        make: its arguments.
        operations: floating-point operations of the plain algorithm, a multiply-add being two.
        elements: read and written: of maps, and in the accumulation type of sums, weights and their gradients.
        results: names of what it returns.
        writes: the argument that it writes a result to.
        spoils: the argument that it may overwrite, to be given afresh.
    """

    name: str
    direction: str
    method: str
    make: Callable[[Maker], Arguments]
    operations: Callable[[PairSize], int]
    elements: Callable[[PairSize], tuple[int, int]]
    results: tuple[str, ...] = ()
    writes: str | None = None
    spoils: str | None = None

    def bytes(self, size: PairSize, dtype: torch.dtype) -> int:
        """The floor: everything once."""
        of_maps, of_sums = self.elements(size)
        return of_maps * dtype.itemsize + of_sums * torch.promote_types(dtype, torch.float32).itemsize

    def values(self, stages: Any, arguments: Arguments) -> dict[str, Tensor]:
        """Every result by name, in memory of its own."""
        own = dict(arguments)
        for name in (self.writes, self.spoils):
            if name is not None:
                own[name] = arguments[name].clone()
        returned = getattr(stages, self.method)(**own) or ()
        values = {name: x.clone() for name, x in zip(self.results, returned, strict=False)}
        return values if self.writes is None else {**values, self.writes: own[self.writes]}


# direct convolution: 2*B*H*W*9*Cin*Cout a pass; 1x1 convolutions the same with 1 for 9. A backward has two passes,
# gradients of the data and of the weight
KERNELS = {
    f"{kernel.name} {kernel.direction}": kernel
    for kernel in (
        Kernel(
            "linear_relu",
            "forward",
            "linear_relu",
            _linear_relu,
            lambda s: 2 * s.P * s.c * s.K,
            lambda s: (s.P * (s.c + s.K), s.K * s.c),
            writes="h",
        ),
        Kernel(
            "linear_relu",
            "backward",
            "linear_relu_backward",
            _linear_relu_backward,
            lambda s: 2 * 2 * s.P * s.c * s.K,
            lambda s: (s.P * (s.c + 2 * s.K), s.P * s.c + 2 * s.K * s.c),
            ("d_weight", "d_bias"),
            "d_x",
            "d_h",
        ),
        Kernel(
            "conv3x3",
            "forward",
            "conv3x3",
            _conv3x3,
            lambda s: 2 * s.P * 9 * s.K * s.K,
            lambda s: (2 * s.P * s.K, 9 * s.K * s.K),
            ("z", "mean", "variance"),
        ),
        Kernel(
            "conv3x3",
            "backward",
            "conv3x3_backward",
            _conv3x3_backward,
            lambda s: 2 * 2 * s.P * 9 * s.K * s.K,
            lambda s: (4 * s.P * s.K, 2 * 9 * s.K * s.K),
            ("d_h1", "d_weight"),
            spoils="d_h2",
        ),
        Kernel(
            "end",
            "forward",
            "end",
            _end,
            lambda s: 2 * s.P * s.K * s.C,
            lambda s: (s.P * (s.K + s.C), s.K * s.C),
            ("squared_error",),
        ),
        Kernel(
            "end",
            "forward+backward",
            "end",
            _end_with_gradients,
            lambda s: 3 * 2 * s.P * s.K * s.C,
            lambda s: (s.P * (2 * s.K + s.C), 2 * s.K * s.C),
            ("squared_error", "d_weight", "sum_d", "sum_dz"),
            "d_h",
        ),
    )
}


def double(arguments: Arguments) -> Arguments:
    return {name: _double(x) for name, x in arguments.items()}


def _double(x: Any) -> Any:
    # a BatchNorm is a tuple of tensors
    if isinstance(x, tuple):
        return type(x)(*map(_double, x))
    return x.double() if isinstance(x, Tensor) else x


def check(kernel: Kernel, found: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """No row for a wrong result: what a contender found against fp64, judged by what torch reaches in the same types.

    Args:
        found: the contender's :meth:`Kernel.values`.
        eager: those of torch's stages, on as many threads: its sums over rows are more exact on more.
        exact: those of plain stages in fp64.
    """
    assert found.keys() == eager.keys() == exact.keys()
    for name, value in found.items():
        assert_close(value, eager[name], exact[name], f"{kernel.name} {kernel.direction}: {name}")
