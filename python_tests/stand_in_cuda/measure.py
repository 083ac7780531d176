"""Counts what one step launches, and what each launch reads, writes and computes. Runs in a child process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from semckd_kernels.backends.triton.launch import COMPILED, Launches

from . import costs, table_costs
from .problems import Problem, Step
from .records import Log, Record, library

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
def triton_launches(spans: list[Span]) -> Iterator[None]:
    """Notes the work of Triton's launches, by their arguments or by the rows of their tables."""
    count, run = library().stand_in_count, JITFunction.run
    add, launch = Launches.add, Launches.launch
    waiting: list[tuple[str, costs.Work]] = []

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = count()
        result = run(self, *args, **kwargs)
        arguments = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        if "ROW" not in arguments:
            spans.append(Span(first, count(), self.fn.__name__, costs.of_triton(arguments)))
        return result

    def added(self: Launches, kernel: Any, work: Any, constants: Any, options: Any) -> None:
        add(self, kernel, work, constants, options)
        if any(row.programs for row in work):
            name = kernel.fn.__name__
            waiting.append((name, costs.Work(*table_costs.cost_of(name, work, constants))))

    def launched(self: Launches, *args: Any) -> None:
        first = count()
        launch(self, *args)
        # in the order in which they were added
        spans.append(Span(first, count(), *waiting.pop(0)))

    JITFunction.run, Launches.add, Launches.launch = noted, added, launched
    try:
        yield
    finally:
        JITFunction.run, Launches.add, Launches.launch = run, add, launch


@contextmanager
def compilations(names: list[str]) -> Iterator[None]:
    """Names of the Triton programs that a new process would compile, or take from Triton's folder of compiled ones."""
    for kernel in [x for x in gc.get_objects() if type(x) is JITFunction]:
        kernel.device_caches.clear()
    COMPILED.clear()
    knobs = triton.knobs.runtime
    before = knobs.jit_post_compile_hook
    knobs.jit_post_compile_hook = lambda *, fn, **_: names.append(fn.name)
    try:
        yield
    finally:
        knobs.jit_post_compile_hook = before


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """The ledger of one problem: counts, launches by stage with their predicted device time, predicted times.

    Args:
        options: fields of :class:`~.problems.Problem`.
    """
    problem = Problem(**options)
    programs: list[str] = []
    step = Step(problem)
    with compilations(programs):
        step()
    # how memory was cut up by what ran before changes the peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operators = Operators()
    with Log() as log, operators, triton_launches(operators.spans):
        step.capture() if problem.mode == "graph" else step()
    peak = torch.cuda.max_memory_allocated() - before
    launches = costs.price(log.records, operators.spans)
    host_us = costs.host_us(launches, operators.quiet)
    device_us = sum(launch.device_us for launch in launches)
    return {
        "problem": asdict(problem),
        "key": problem.key,
        "counts": {
            "launches": len(launches),
            "triton": sum(launch.kind == "triton" for launch in launches),
            "vendor": sum(launch.kind == "vendor" for launch in launches),
            "convolutions": sum(launch.name.startswith("conv ") for launch in launches),
            "copies": sum(launch.kind == "copy" for launch in launches),
            "pageable": len(log.copies("pageable")),
            "syncs": len(_waits(log)),
            "programs": len(programs),
            "peak_mb": -(-peak // 2**20),
        },
        "stages": costs.by_stage(launches),
        "kernels": costs.by_kernel(launches),
        "predicted_ms": {
            "host": host_us / 1e3,
            "device": device_us / 1e3,
            "eager": max(host_us, device_us) / 1e3,
            "graphed": (device_us + costs.NODE_US * len(launches)) / 1e3,
        },
    }


def dispatches(options: dict[str, Any]) -> list[int]:
    """How often a first and a second step go through Triton's own dispatch, which costs more than a launch."""
    step, run = Step(Problem(**options)), JITFunction.run
    calls: list[int] = [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[-1] += 1
        return run(self, *args, **kwargs)

    JITFunction.run = counted
    try:
        step()
        calls.append(0)
        step()
    finally:
        JITFunction.run = run
    return calls


def _waits(log: Log) -> list[Record]:
    """Synchronisations, without those that torch makes before a capture begins."""
    begins = [n for n, record in enumerate(log.records) if record.kind == "capture"]
    return [record for record in log.records[begins[0] if begins else 0 :] if record.kind == "sync"]


def measure_all(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ledgers of several problems, in one process."""
    return [measure(problem) for problem in problems]


def host_ms(problems: list[dict[str, Any]], repeats: int = 20) -> list[float]:
    """The least milliseconds that a step of each problem keeps the host busy, with nothing recorded.

    The problems take turns, so that a neighbour on the machine slows down all of them.
    """
    steps = [Step(Problem(**problem)) for problem in problems]
    for step in steps:
        step()
    rounds = [[_timed_ms(step) for step in steps] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _timed_ms(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - begin)
