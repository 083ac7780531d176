"""Counts what one step launches, and what each launch reads, writes and computes. Runs in a child process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from . import costs
from .problems import Problem, Step
from .records import Log, library

# composite operators of ours, which are looked into
OWN_NAMESPACES = ("semckd_criterion", "semckd_triton")


@dataclass(frozen=True)
class Span:
    """Records of one operator call, ``first`` up to ``last``, and their work in all."""

    first: int
    last: int
    operator: str
    work: costs.Work


class Operators(TorchDispatchMode):
    """Notes which operator recorded what; ``quiet`` counts operators that launched nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.quiet = 0
        self._count = library().stand_in_count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in OWN_NAMESPACES:
            has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
            key = torch._C.DispatchKey.CUDA if has_cuda else torch._C.DispatchKey.CompositeExplicitAutograd
            with self:
                return func._op_dk(key, *args, **kwargs)
        first = self._count()
        out = func(*args, **kwargs)
        last = self._count()
        if last > first:
            tensors = {id(x): x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
            self.spans.append(Span(first, last, func.name(), costs.Work(costs.bytes_of(tensors.values()))))
        else:
            self.quiet += 1
        return out


@contextmanager
def triton_launches(problem: Problem, spans: list[Span]) -> Iterator[None]:
    """Notes the work of Triton's launches, by their arguments."""
    count, run = library().stand_in_count, JITFunction.run

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = count()
        result = run(self, *args, **kwargs)
        arguments = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        spans.append(Span(first, count(), self.fn.__name__, costs.of_triton(self.fn.__name__, arguments, problem)))
        return result

    JITFunction.run = noted
    try:
        yield
    finally:
        JITFunction.run = run


@contextmanager
def compilations(names: list[str]) -> Iterator[None]:
    """Names of the Triton programs that are compiled, or taken from Triton's cache of compiled ones."""
    import triton

    before = triton.knobs.runtime.jit_post_compile_hook

    def hook(*, fn: Any, **_: Any) -> None:
        names.append(fn.name)

    triton.knobs.runtime.jit_post_compile_hook = hook
    try:
        yield
    finally:
        triton.knobs.runtime.jit_post_compile_hook = before


def measure(what: str, network: str, kind: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ledger of one problem: counts, launches by stage with their predicted device time, predicted times.

    Args:
        options: further fields of :class:`~.problems.Problem`.
    """
    problem = Problem(what, network, kind, **(options or {}))
    modules: list[str] = []
    step = Step(problem)
    with compilations(modules):
        step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operators = Operators()
    with Log() as log, operators, triton_launches(problem, operators.spans):
        step()
    peak = torch.cuda.max_memory_allocated() - before
    launches = costs.price(log.records, operators.spans)
    host_us = costs.host_us(launches, operators.quiet)
    device_us = sum(launch.device_us for launch in launches)
    return {
        "problem": asdict(problem),
        "counts": {
            "launches": len(launches),
            "triton": sum(launch.kind == "triton" for launch in launches),
            "vendor": sum(launch.kind == "vendor" for launch in launches),
            "convolutions": sum(launch.name.startswith("conv ") for launch in launches),
            "copies": sum(launch.kind == "copy" for launch in launches),
            "pageable_copies": len(log.copies("pageable")),
            "syncs": len(log.of("sync")),
            "modules": len(modules),
            "peak_mb": -(-peak // 2**20),
        },
        "stages": costs.by_stage(launches),
        "predicted_ms": {
            "host": host_us / 1e3,
            "device": device_us / 1e3,
            "eager": max(host_us, device_us) / 1e3,
            "graphed": (device_us + costs.NODE_US * len(launches)) / 1e3,
        },
    }


def host_ms(what: str, network: str, kind: str, repeats: int = 20) -> float:
    """The least milliseconds that a step keeps the host busy, with nothing recorded and nothing to wait for."""
    step = Step(Problem(what, network, kind))
    return 1e3 * min(_timed(step) for _ in range(repeats + 2))


def _timed(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin
