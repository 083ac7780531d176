"""Random pairs of layers, which backends work off; results of all are the gradients of the same loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from plain_pairs import PlainPairs
from plain_stages import EagerStages, PlainStages
from tolerances import assert_close_on_average
from torch import Tensor

from semckd_kernels.stages.backend import Group, InputGradient, Norm, Pair, PairResult
from semckd_kernels.stages.projection import Projection


class Worker(Protocol):
    """The part of a backend that works off pairs."""

    def chunks(self, groups: Sequence[Group]) -> Iterable[list[Group]]: ...

    def run_chunk(self, chunk: Sequence[Group], alpha: Tensor, mse: Tensor) -> list[PairResult]: ...


class Meeting(NamedTuple):
    """A student layer's map, and the channels of the teacher layers that it meets there."""

    height: int
    width: int
    c: int
    teachers: tuple[int, ...]


class PairProblem:
    """Random pairs, which backends work off; results of all are the gradients of the same loss."""

    def __init__(
        self,
        meetings: Sequence[Meeting],
        dtype: torch.dtype,
        batch: int = 3,
        batch_statistics: Sequence[bool] = (True,),
        parameter_dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch, self.dtype, self.meetings = batch, dtype, meetings
        acc = torch.promote_types(dtype, torch.float32)
        count = sum(len(m.teachers) for m in meetings)

        def normal(*size: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
            return (
                (torch.randn(size, generator=generator, dtype=torch.float64) * scale + shift)
                .to(parameter_dtype or acc)
                .to(device)
            )

        def a_map(m: Meeting, channels: int) -> Tensor:
            return normal(batch, m.height, m.width, channels, shift=0.5).to(dtype)

        self.alpha = (torch.rand(batch, 1, count, generator=generator, dtype=torch.float64) + 0.1).to(acc).to(device)
        self.x, self.pairs = [], []
        flags = [bool(batch_statistics[n % len(batch_statistics)]) for n in range(2 * count)]
        for m in meetings:
            self.x.append(a_map(m, m.c))
            for C in m.teachers:
                q, k = len(self.pairs), 2 * C
                weight2 = normal(k, k, 3, 3, scale=(9 * k) ** -0.5)
                parameters = Projection(
                    normal(k, m.c, 1, 1, scale=m.c**-0.5),
                    normal(k, scale=0.3, shift=1),
                    normal(k, scale=0.3),
                    # some in channels_last, as a user's model may be
                    weight2.to(memory_format=torch.channels_last) if q % 2 or k > 64 else weight2,
                    normal(k, scale=0.3, shift=1),
                    normal(k, scale=0.3),
                    normal(C, k, 1, 1, scale=k**-0.5),
                )
                norms = [
                    Norm(normal(k, scale=0.3), normal(k).abs() + 0.5, 1e-5, flag) for flag in flags[2 * q : 2 * q + 2]
                ]
                self.pairs.append([a_map(m, C), parameters, norms])

    def groups(self, dtype: torch.dtype | None = None, need_grad: bool = True) -> list[Group]:
        """The same numbers as a backend takes them, in another type where one is given."""
        groups: list[Group] = []
        rest = iter(self.pairs)
        q = 0
        waits = self.dtype == torch.float16
        for n, m in enumerate(self.meetings):
            pairs = []
            for _ in m.teachers:
                y, parameters, norms = next(rest)
                if dtype:
                    y, parameters = y.to(dtype), Projection(*(p.to(dtype) for p in parameters))
                    norms = [Norm(a.to(dtype), b.to(dtype), eps, flag) for a, b, eps, flag in norms]
                factor = 2 / (y[0].numel() * self.batch)
                pairs.append(Pair(q, y, parameters, tuple(norms), *((1.0, factor) if waits else (factor, 1.0))))
                q += 1
            x = self.x[n].to(dtype) if dtype else self.x[n]
            d_x = InputGradient() if need_grad else None
            groups.append(Group(n, (m.height, m.width), x, pairs, max(pair.outside for pair in pairs), d_x))
        return groups

    def run(self, backend: Worker, dtype: torch.dtype | None = None, need_grad: bool = True) -> dict[str, Tensor]:
        """Everything that all pairs give, by name."""
        groups = self.groups(dtype, need_grad)
        alpha = self.alpha.to(torch.promote_types(dtype or self.dtype, torch.float32))
        mse = torch.full_like(alpha, float("nan"))
        results: list[PairResult] = []
        for chunk in backend.chunks(groups):
            results += backend.run_chunk(chunk, alpha, mse)
        named = {"mse": mse}
        for group in groups:
            if group.d_x is not None:
                assert group.d_x.rows is not None
                named[f"d_x {group.i}"] = group.d_x.rows * group.later
        for q, result in enumerate(results):
            named |= {f"statistics {q}.{n}": x for n, x in enumerate(result.statistics)}
            if result.gradients is not None:
                named |= {f"d_{field} {q}": x for field, x in result.gradients._asdict().items()}
        return named


def moved_parameters(problem: PairProblem, offset: int) -> None:
    """Puts parameters at any address, as views into one buffer, the first with strides of its own."""
    for pair in problem.pairs:
        parameters = []
        for p in pair[1]:
            buffer = torch.full((p.numel() + offset,), float("nan"), device=p.device)
            view = buffer[offset:].as_strided(p.shape, p.stride())
            parameters.append(view.copy_(p))
        # every other row and column of a larger matrix
        larger = torch.full([2 * n for n in parameters[0].shape[:2]], float("nan"), device=parameters[0].device)
        larger[::2, ::2] = parameters[0][:, :, 0, 0]
        parameters[0] = larger[::2, ::2, None, None]
        pair[1] = Projection(*parameters)


def check_pairs(problem: PairProblem, backend: Worker, need_grad: bool = True, only: str = "") -> dict[str, Tensor]:
    """A backend's results against the plain ones in fp64, judged by those in the problem's types."""
    value = problem.run(backend, None, need_grad)
    eager = problem.run(PlainPairs(EagerStages(problem.dtype), need_grad), None, need_grad)
    exact = problem.run(PlainPairs(PlainStages(), need_grad), torch.float64, need_grad)
    assert value.keys() == exact.keys()
    for kind in {name.split()[0] for name in exact if name.startswith(only)}:
        # a ReLU that flips, or one value's rounding, decides about a single one
        names = [name for name in exact if name.split()[0] == kind]
        assert_close_on_average(*([side[name] for name in names] for side in (value, eager, exact)), kind)
    return value


# one pixel, channels that fill no vector, several pairs of one input
RAGGED = [Meeting(1, 1, 3, (2,)), Meeting(5, 7, 10, (9, 3))]
# channels that fill vectors, more pixels than a tile
EVEN = [Meeting(9, 8, 16, (8, 8)), Meeting(3, 4, 24, (8,))]
MEETINGS = {"ragged": RAGGED, "even": EVEN}
