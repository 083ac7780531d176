"""Honest timings: correctness first, all contenders interleaved in one run, inputs rotated past the last-level cache.

A contender's figure is the median over rounds; a comparison is the median over rounds of the ratio of two times taken
next to each other, so that a machine whose speed wanders wanders for both.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from semckd_kernels import backends
from semckd_kernels.stages import workspace

# fewer give no median
LEAST_ROUNDS = 3


def silent(text: str) -> None:
    """Progress that nobody looks at."""


# gets a line of progress; conftest.py shows it
say: Callable[[str], None] = silent


@dataclass
class Contender:
    """One way to do the work.

    Args:
        name: as it stands in the row.
        run: the timed part.
        prepare: makes ``run``'s argument from one of the rotated inputs, untimed.
    """

    name: str
    run: Callable[[Any], Any]
    prepare: Callable[[Any], Any] = lambda inputs: inputs
    seconds: list[float] = field(default_factory=list)

    def time(self, inputs: Any, device: str, calls: int = 1) -> None:
        """Adds one figure: the time of a call, or the mean of several in a row."""
        arguments = [self.prepare(inputs) for _ in range(calls)]
        # results are freed outside the timed part, for every contender alike
        results = []
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for argument in arguments:
                results.append(self.run(argument))
            end.record()
            torch.cuda.synchronize()
            seconds = begin.elapsed_time(end) / 1e3
        else:
            begin_s = time.perf_counter()
            for argument in arguments:
                results.append(self.run(argument))
            seconds = time.perf_counter() - begin_s
        self.seconds.append(seconds / calls)

    def quantile_ms(self, percent: int) -> float:
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1] * 1e3

    def quantiles(self) -> dict[str, float]:
        """The columns of a row that hold times."""
        return {f"p{percent}_ms": self.quantile_ms(percent) for percent in (20, 50, 80)}

    def speedup_over(self, other: Contender) -> float:
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(
    contenders: Sequence[Contender],
    inputs: Sequence[Any],
    rounds: int,
    device: str,
    benchmark: Any,
    calls: int = 1,
    budget_s: float | None = None,
    settle: bool = False,
) -> None:
    """Times every contender once a round on that round's inputs; the last one also under pytest-benchmark.

    Args:
        rounds: at most.
        calls: calls a figure. More than one where the work is so small that a single call would measure how much of
            the contender's code the others have pushed out of the caches.
        budget_s: for work of seconds a round: as many rounds as fit, but three, after one round to warm up instead of
            three. Contenders must have run before.
        settle: let every contender run once untimed before each figure. For work of hundreds of megabytes, whose calls
            follow their own like in training: memory that another contender has given back to the system would be
            asked for again, page by page, in the timed call of the next.
    """
    *others, last = contenders
    for contender in contenders:
        for n in range(3 if budget_s is None else 1):
            contender.time(inputs[n % len(inputs)], device)
    if budget_s is not None:
        one_round_s = sum(contender.seconds[-1] for contender in contenders) * (calls + settle)
        rounds = min(rounds, max(LEAST_ROUNDS, int(budget_s / one_round_s)))
        say(f"{rounds} rounds of {one_round_s:.0f} s: {', '.join(contender.name for contender in contenders)}")
    for contender in contenders:
        contender.seconds.clear()
    n = 0

    def lead_in(contender: Contender) -> None:
        # on the other input: the timed one must not be in a cache already
        if settle:
            contender.run(contender.prepare(inputs[(n + 1) % len(inputs)]))

    def one_round() -> tuple[tuple[Any, str, int], dict[str, Any]]:
        nonlocal n
        n += 1
        for other in others:
            lead_in(other)
            other.time(inputs[n % len(inputs)], device, calls)
        lead_in(last)
        return (inputs[n % len(inputs)], device, calls), {}

    enabled = gc.isenabled()
    gc.disable()
    try:
        benchmark.pedantic(last.time, setup=one_round, rounds=rounds)
    finally:
        if enabled:
            gc.enable()


def copy_contender(elements: int, dtype: torch.dtype, device: str, count: int) -> Contender:
    """A plain copy that moves two transfers an element: what memory can do, measured beside the rest."""
    sources = [torch.randn(elements, device=device).to(dtype) for _ in range(count)]
    targets = [torch.zeros_like(x) for x in sources]
    turn = 0

    def run(_: Any) -> None:
        nonlocal turn
        turn += 1
        targets[turn % count].copy_(sources[turn % count])

    return Contender("copy", run)


def input_sets(bytes_a_set: int, device: str) -> int:
    """How many sets of inputs make each one's turn come when it has left the last-level cache."""
    return max(2, min(24, -(-2 * last_level_cache(device) // max(bytes_a_set, 1))))


def last_level_cache(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(s[:-1]) * units[s[-1]] for s in sizes if s[-1:] in units), default=32 * 2**20)


def served(device: str, work: str) -> list[str]:
    """The backends to measure beside the reference."""
    names = []
    for name in backends.NAMES:
        # interpreted Triton is for correctness: its time says nothing
        for_speed = name != "reference" and (name != "triton" or device == "cuda")
        if for_speed and not (backends.why_not(name, device) or backends.why_not_work(name, work)):
            names.append(name)
    return names


def peak_bytes(run: Callable[[], Any], device: str, warm_up: bool = True) -> int:
    """Peak memory above what was held before, results included; without a warm-up where ``run`` has just run."""
    if warm_up:
        run()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    # freed memory that the C library holds back would hide what the run asks for, and so would our scratch memory
    workspace.release()
    ctypes.CDLL(None).malloc_trim(0)
    # writing 5 resets the kernel's high-water mark of this process
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def kept_bytes(forward: Callable[[], Any], given: Iterable[torch.Tensor]) -> int:
    """What autograd keeps between forward and backward, beside the tensors that were there before (``given``)."""
    before = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in before:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    # the result holds the graph, and that the tensors: no address comes twice
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = forward()
    del result
    return sum(kept.values())


def _resident(which: str) -> int:
    match = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match.group(1)) * 1024 if match else 0


def machine(device: str) -> dict[str, str]:
    """The columns that say where a row comes from."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        said = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
        processor = said.get("model name", platform.processor()).strip()
        if "cpu family" in said and "model" in said:
            # virtual machines' names are those of several generations
            processor += f" (family {said['cpu family']} model {said['model']})"
        level = torch.ops.semckd_cpu.isa()
        name = f"{processor}, {torch.get_num_threads()} threads, {level}"
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """The commit that is measured, ``-dirty`` where something but stored rows differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)bench/results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")
