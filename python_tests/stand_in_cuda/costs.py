"""A model of what launches cost, on an H100: predictions, to be shown as such and replaced by measurements.

=====================  ==============  ==========================================================================
constant               value           source
=====================  ==============  ==========================================================================
a kernel, at least     2 us            tiny kernels in a graph: about 2 us in all (ocannl#488, llama.cpp#22522)
memory                 3.0 TB/s        90% of an H100 SXM's 3.35 TB/s, as copies reach
products, 16-bit       600 TFLOP/s     cuBLAS on large products: 584 (TLX, at 65536 x 1024 x 1024)
products, TF32         300 TFLOP/s     half of that, as the data sheet has it
products, fp32         45 TFLOP/s      67 of the data sheet, at two thirds
a node of a graph      1.3 us          between kernels in a graph: 0.6 us and more (ocannl#488)
an aten operator       5 us of host    1.9 measured on the stand-in, plus the driver's launch
a convolution          15 us of host   the same, plus cuDNN's choice of an algorithm
a Triton launch        7 us of host    3.5 by the compiled kernel's own launcher (tritonbench#669), and a table's rows
a view, an allocation  1 us of host    measured on the stand-in
=====================  ==============  ==========================================================================

The device time of a launch is the largest of the least time, bytes over memory speed, operations over the rate. A step
in eager mode takes the larger of host and device time; as a graph, the device time and a gap a node, on one stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .records import Record

if TYPE_CHECKING:
    from .measure import Span

LEAST_US = 2.0
BYTES_A_US = 3.0e6
FLOPS_A_US = {"16 bit": 600e6, "tf32": 300e6, "fp32": 45e6}
NODE_US = 1.3
HOST_US = {"aten": 5.0, "convolution": 15.0, "triton": 7.0}
QUIET_US = 1.0


@dataclass(frozen=True)
class Work:
    """What a launch reads and writes, its multiply-adds counted as two, and at what rate they go."""

    bytes: float = 0.0
    flops: float = 0.0
    rate: str = "fp32"

    @property
    def us(self) -> float:
        return max(LEAST_US, self.bytes / BYTES_A_US, self.flops / FLOPS_A_US[self.rate])


@dataclass(frozen=True)
class Launch:
    """A record with its work.

    Attributes:
        first: whether it is the first launch of its operator, which carries the operator's host time.
    """

    kind: str
    name: str
    stage: str
    operator: str
    device_us: float
    first: bool


def bytes_of(tensors: Iterable[Any]) -> float:
    """Of the elements that are there: expanded dimensions count once."""
    total = 0
    for x in tensors:
        if isinstance(x, Tensor) and x.is_cuda:
            size = x.element_size()
            for length, stride in zip(x.shape, x.stride(), strict=True):
                size *= length if stride else 1
            total += size
    return float(total)


# --- Triton's kernels ---------------------------------------------------------------------------------------------

Arguments = Mapping[str, Any]


def of_triton(arguments: Arguments) -> Work:
    """The work of a Triton launch that gets its tensors as arguments: they are read or written once."""
    return Work(bytes_of(arguments.values()))


# --- all launches -------------------------------------------------------------------------------------------------


def _of_vendor(record: Record) -> Work:
    flops = float(record.name.rsplit("flops=", 1)[1])
    if "float16" in record.name:
        return Work(record.bytes, flops, "16 bit")
    # torch's defaults: convolutions may use TF32, products may not
    return Work(record.bytes, flops, "tf32" if record.name.startswith("conv ") else "fp32")


def price(records: Sequence[Record], spans: Sequence[Span]) -> list[Launch]:
    """Every launch with its predicted device time; an operator's work is shared out evenly among its launches."""
    owner: dict[int, Span] = {}
    launches_of: dict[int, list[int]] = {}
    # inner spans come before the ones around them
    for span in spans:
        own = [n for n in range(span.first, span.last) if records[n].is_launch and n not in owner]
        for n in own:
            owner[n] = span
            launches_of[n] = own
    result = []
    for n, record in enumerate(records):
        if not record.is_launch:
            continue
        span = owner.get(n)
        if record.kind == "vendor":
            work = _of_vendor(record)
        elif span is None:
            # a compiled program that was launched without Triton's help has no arguments to look at
            work = Work(0.0 if record.kind == "triton" else record.bytes)
        else:
            share = len(launches_of[n])
            work = Work(span.work.bytes / share, span.work.flops / share, span.work.rate)
        first = span is None or launches_of[n][0] == n
        operator = record.name if span is None else span.operator
        # of launches over tables, which start in one place, the kernel says more
        stage = operator if operator.endswith("_kernel") else record.stage
        result.append(Launch(record.kind, record.name, stage, operator, work.us, first))
    return result


def host_us(launches: Sequence[Launch], quiet: int) -> float:
    """The host time of a step: its operators that launch, and ``quiet`` ones that do not."""
    total = QUIET_US * quiet
    for launch in launches:
        if launch.first:
            kind = "triton" if launch.kind == "triton" else "convolution" if "conv" in launch.operator else "aten"
            total += HOST_US[kind]
    return total


def by_stage(launches: Sequence[Launch]) -> dict[str, dict[str, float]]:
    """Counts by kind and predicted device time of each stage, the one with most launches first."""
    stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for launch in launches:
        row = stages[launch.stage]
        row["launches"] += 1
        row[launch.kind] += 1
        row["device_us"] += launch.device_us
    return {name: dict(row) for name, row in sorted(stages.items(), key=lambda item: -item[1]["launches"])}


def by_kernel(launches: Sequence[Launch]) -> dict[str, list[float]]:
    """Launches and predicted microseconds of each kernel; those of one vendor operation together."""
    kernels: dict[str, list[float]] = {}
    for launch in launches:
        words = launch.name.split()
        name = launch.name[:80] if launch.kind in ("triton", "kernel") else " ".join([launch.kind, *words[:2]])
        row = kernels.setdefault(name, [0, 0.0])
        row[0] += 1
        row[1] += launch.device_us
    return {name: [count, round(us, 1)] for name, (count, us) in sorted(kernels.items(), key=lambda x: -x[1][1])}
