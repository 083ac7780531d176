"""Random pair-loss problems, and one call that runs a backend on them forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from semckd_kernels import functional

Shape = Sequence[int]

# ragged on purpose: every count around a vector, a cache line or a chunk, on its own and after others
RAGGED: list[list[Shape]] = [
    [(1, 1, 1), (7, 1, 1), (3, 7, 3)],
    [(5, 13, 1), (1, 17, 241), (2, 4, 4)],
]
ODD_COUNTS = (1, 7, 15, 16, 17, 63, 64, 65, 4099, 8192, 8193)


class Gradients(NamedTuple):
    """What one forward and backward pass gives."""

    loss: Tensor
    pair_mse: Tensor
    d_s: list[Tensor]
    d_t: list[Tensor]
    d_weight: Tensor


@dataclass
class Problem:
    """Maps ``[i][j]``, a weight or energy ``[B, S, T]``, and the loss's upstream gradient."""

    s: list[list[Tensor]]
    t: list[list[Tensor]]
    weight: Tensor
    d_loss: float = -1.7

    def convert(self, convert: Callable[[Tensor], Tensor]) -> Problem:
        return replace(
            self,
            s=[[convert(x) for x in row] for row in self.s],
            t=[[convert(x) for x in row] for row in self.t],
            weight=convert(self.weight),
        )

    def double(self) -> Problem:
        return self.convert(lambda x: x.double())

    def run(self, backend: str, energy: bool = False, target_gradient: bool = True) -> Gradients:
        """Loss, pair errors and all gradients; the inputs themselves (not copies) are what the backend sees."""
        student = [x.detach().requires_grad_() for row in self.s for x in row]
        teacher = [x.detach().requires_grad_(target_gradient) for row in self.t for x in row]
        weight = self.weight.detach().requires_grad_()
        loss_of = functional.semckd_loss_from_energy if energy else functional.semckd_loss
        columns = len(self.s[0])
        loss, mse = loss_of(
            nested(student, columns), nested(teacher, columns), weight, backend=backend, return_pair_mse=True
        )
        upstream = torch.full_like(loss, self.d_loss)
        wanted = [*student, *(teacher if target_gradient else ()), weight]
        d_s_and_t = torch.autograd.grad(loss, wanted, upstream)
        q = len(student)
        return Gradients(loss.detach(), mse, list(d_s_and_t[:q]), list(d_s_and_t[q:-1]), d_s_and_t[-1])


def nested(maps: Sequence[Tensor], columns: int) -> list[list[Tensor]]:
    return [list(maps[i : i + columns]) for i in range(0, len(maps), columns)]


def make_problem(
    shapes: Sequence[Sequence[Shape]] = RAGGED,
    batch: int = 3,
    s_type: torch.dtype = torch.float32,
    t_type: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def rand(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.randn(tuple(shape), generator=generator).to(device, dtype)

    acc_dtype = torch.float64 if torch.float64 in (s_type, t_type) else torch.float32
    return Problem(
        [[rand((batch, *shape), s_type) for shape in row] for row in shapes],
        [[rand((batch, *shape), t_type) for shape in row] for row in shapes],
        # positive, so that the loss is no difference of large numbers: relative errors would mean little
        rand((batch, len(shapes), len(shapes[0])), acc_dtype).abs(),
    )
