"""The CPU's kernels one by one, against torch's own library at the same work, on one thread and on all.

    pytest bench/bench_kernels.py             quick: one map of one pair of networks, in fp32 and bf16
    pytest bench/bench_kernels.py --full      every map (layers of equal depth) of every pair

GFLOP/s count the plain algorithm: ``2*B*H*W*9*Cin*Cout`` a pass of the 3x3 convolution (backward: two passes), of which
Winograd's form does a quarter (fp32) or 16/36 (bf16); more than 100% of the peak is possible. The peak is measured in
the same run, in the row's own type: where products of bf16 maps are made in fp32, half of it is out of reach.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_stages import CpuStages, Workspace
from plain_stages import PlainStages, TorchStages
from torch import Tensor

from . import fma_peak
from .fma_peak import FmaPeak
from .harness import Contender, copy_contender, input_sets, interleave, machine, peak_bytes, served
from .kernels import DTYPES, KERNELS, Arguments, Kernel, Maker, check, double, sizes
from .results import Row
from .shapes import NETWORK_PAIRS

SIZES = {
    f"{pair.name} {name}": size
    for pair in NETWORK_PAIRS.values()
    if pair.name not in ("tiny", "overhead")
    for name, size in sizes(pair.on("cpu", whole_step=True)).items()
}
QUICK = [("resnet32x4-resnet8x4 128x16x16", dtype) for dtype in DTYPES]
FULL = [(name, dtype) for name in SIZES for dtype in DTYPES]
ROUNDS = 30
BUDGET_S = 8.0
DEFAULT_THREADS = torch.get_num_threads()
THREADS = sorted({1, DEFAULT_THREADS})

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of the CPU: for machines that train on it"),
    pytest.mark.skipif("cpu" not in served("cpu", "criterion"), reason="the compiled CPU library is missing"),
]


@pytest.fixture(scope="module")
def peak(tmp_path_factory: pytest.TempPathFactory) -> FmaPeak | None:
    probe = fma_peak.build(tmp_path_factory.mktemp("fma_peak"))
    if isinstance(probe, str):
        warnings.warn(f"peak of fused multiply-adds: not measured, {probe}", stacklevel=1)
        return None
    return probe


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    torch.set_num_threads(DEFAULT_THREADS)


class OnThreads:
    """A contender's stages on a number of threads."""

    def __init__(self, name: str, kernel: Kernel, threads: int) -> None:
        self.name, self.kernel, self.threads = name, kernel, threads
        self.workspace = Workspace()
        self.stages: Any = CpuStages(self.workspace) if name == "cpu" else TorchStages()

    def prepare(self, arguments: Arguments) -> Arguments:
        torch.set_num_threads(self.threads)
        self.workspace.reset()
        name = self.kernel.spoils
        return arguments if name is None else {**arguments, name: arguments[name].clone()}

    def run(self, arguments: Arguments) -> Any:
        return getattr(self.stages, self.kernel.method)(**arguments)

    def values(self, arguments: Arguments) -> dict[str, Tensor]:
        return self.kernel.values(self.stages, self.prepare(arguments))

    def contender(self) -> Contender:
        return Contender(self.name, self.run, self.prepare)

    def peak_bytes(self, arguments: Arguments) -> int:
        # memory that a workspace keeps for the next call is this one's as well
        fresh = OnThreads(self.name, self.kernel, self.threads)
        prepared = fresh.prepare(arguments)
        return peak_bytes(lambda: fresh.run(prepared), "cpu", warm_up=False)


def on_threads(contender: Contender, threads: int) -> Contender:
    """A contender that does not care about stages."""

    def prepare(_: Any) -> None:
        torch.set_num_threads(threads)

    return Contender(contender.name, contender.run, prepare)


@pytest.mark.parametrize("what", KERNELS)
def test_kernel(shape: str, dtype: str, what: str, peak: FmaPeak | None, benchmark: Any, rows: list[Row]) -> None:
    kernel, size, kind = KERNELS[what], SIZES[shape], DTYPES[dtype]
    moved, operations = kernel.bytes(size, kind), kernel.operations(size)
    inputs = [kernel.make(Maker(size, kind, seed)) for seed in range(input_sets(moved, "cpu"))]
    settings = [OnThreads(name, kernel, threads) for name in ("torch", "cpu") for threads in THREADS]
    exact = kernel.values(PlainStages(), double(inputs[0]))
    for threads in THREADS:
        eager, found = (setting.values(inputs[0]) for setting in settings if setting.threads == threads)
        check(kernel, found, eager, exact)
    del eager, found, exact

    copied = size.P * size.K
    copy = copy_contender(copied, kind, "cpu", input_sets(2 * copied * kind.itemsize, "cpu"))
    copies = {threads: on_threads(copy, threads) for threads in THREADS}
    peaks = {threads: peak.contender(dtype, threads) for threads in THREADS} if peak else {}
    contenders = {(setting.name, setting.threads): setting.contender() for setting in settings}
    everyone = [*copies.values(), *peaks.values(), *contenders.values()]
    interleave(everyone, inputs, ROUNDS, "cpu", benchmark, budget_s=BUDGET_S)

    torch.set_num_threads(DEFAULT_THREADS)
    where = machine("cpu")
    for setting in settings:
        threads, contender = setting.threads, contenders[setting.name, setting.threads]
        peak_gflops, peak_percent = 0.0, 0.0
        if peak is not None:
            possible = peak.operations(dtype, threads)
            peak_gflops = possible / peaks[threads].quantile_ms(50) / 1e6
            # of two rates taken next to each other, as a comparison of times is
            peak_percent = 100 * contender.speedup_over(peaks[threads]) * operations / possible
        speed = moved / contender.quantile_ms(50)
        row = Row(
            op="kernels",
            backend=setting.name,
            direction=kernel.direction,
            dtype=dtype,
            shape=shape,
            batch=size.B,
            **contender.quantiles(),
            mbytes=moved / 1e6,
            gbytes_s=speed / 1e6,
            copy_percent=100 * speed * copies[threads].quantile_ms(50) / (2 * copied * kind.itemsize),
            peak_mbytes=setting.peak_bytes(inputs[0]) / 1e6,
            over_same=contender.speedup_over(contenders["torch", threads]),
            kernel=kernel.name,
            threads=threads,
            gflops=operations / contender.quantile_ms(50) / 1e6,
            peak_gflops=peak_gflops,
            peak_percent=peak_percent,
            over_one_thread=contender.speedup_over(contenders[setting.name, 1]) if threads > 1 else 0.0,
            **where,
        )
        rows.append(row)
