"""The measurements of ``make gpu``: a section a process, a row of JSON for each result, written as soon as it is there.

    python python_tests/gpu_measure.py SECTION --out FILE --seconds N

errors             of all types at CIFAR's size, against fp64: ours beside the plain code's
cifar, imagenet    ms of a forward and backward, eager, on the host and as a graph, of ours, the plain code (NCHW, NHWC,
                   compiled) and the official modules with our loss; with the ledger's prediction
profile            microseconds of the device by kernel, with the ledger's prediction
vendor             TFLOP/s of the vendor's 3x3 convolutions, forward and both gradients

A result that fails becomes a row with its error. Needs no build, but for torch and Triton.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python_tests")]

import torch  # noqa: E402
from stand_in_cuda.problems import NHWC, TYPES, Problem, Step  # noqa: E402
from torch import Tensor  # noqa: E402

PREDICTED = ROOT / "python_tests" / "stand_in_cuda" / "predicted.json"
# what is compared, the most telling first; the compiler takes its time
CONTENDERS = {
    "ours": Problem("ours", "cifar", "bf16"),
    "plain NHWC": Problem("plain", "cifar", "bf16"),
    "plain NCHW": Problem("plain", "cifar", "bf16", nhwc=False),
    "drop_in NHWC": Problem("drop_in", "cifar", "bf16"),
    "plain compiled": Problem("plain", "cifar", "bf16"),
}
# channels and sides of the 3x3 convolutions of each network pair
CONVOLUTIONS = {
    "cifar": ((128, 32), (128, 16), (256, 16), (128, 8), (256, 8), (512, 8)),
    "imagenet": ((128, 56), (256, 28), (512, 14), (1024, 7)),
}
BATCHES = {"cifar": (64, 256), "imagenet": (256, 64)}
# what fp16's gradients are multiplied by, as a scaler would
FP16_SCALE = 1024.0
LEAST_CALLS, MOST_CALLS = 5, 200
Row = dict[str, Any]


class Timers:
    """The time that a section has."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def guarded(measurement: Callable[[], Row], **labels: Any) -> Row:
    """A row of a measurement; of one that fails, with its error."""
    try:
        return {**labels, **measurement()}
    except Exception as error:
        return {**labels, "error": f"{type(error).__name__}: {error}"[:500]}


def median_ms(call: Callable[[], object], seconds: float) -> Row:
    """Medians of device time, by events, and of the host's time until the call returns; of one call for no seconds."""
    least = LEAST_CALLS if seconds else 1
    call()
    torch.cuda.synchronize()
    device, host, begin = [], [], time.monotonic()
    while len(device) < least or (time.monotonic() - begin < seconds and len(device) < MOST_CALLS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        started = time.perf_counter()
        call()
        host.append(1e3 * (time.perf_counter() - started))
        last.record()
        torch.cuda.synchronize()
        device.append(first.elapsed_time(last))
    return {"ms": round(statistics.median(device), 4), "host_ms": round(statistics.median(host), 4)}


def make_step(problem: Problem, compiled: bool = False) -> Step:
    """A step on maps as after a ReLU, the same each time."""
    torch.manual_seed(0)
    step = Step(problem)
    with torch.no_grad():
        for x in (*step.feat_s, *step.feat_t):
            x.normal_().relu_()
    if compiled:
        step.module.compile()
    return step


def predictions() -> dict[str, Row]:
    stored: dict[str, Row] = json.loads(PREDICTED.read_text()) if PREDICTED.exists() else {}
    return stored


# --- sections -----------------------------------------------------------------------------------------------------


def _results(module: torch.nn.Module, kind: str, dtype: torch.dtype, maps: Sequence[list[Tensor]]) -> dict[str, Any]:
    feat_s, feat_t = ([x.to(dtype) for x in layers] for layers in maps)
    feat_s = [x.requires_grad_() for x in feat_s]
    half = kind != "fp32" and dtype != torch.float64
    with torch.autocast("cuda", TYPES[kind] if half else torch.bfloat16, enabled=half):
        loss, weight, mse = module(feat_s, feat_t)
    scale = FP16_SCALE if kind == "fp16" else 1.0
    gradients = torch.autograd.grad(loss * scale, [*feat_s, *module.parameters()])
    found = [x.detach().double() / scale for x in gradients]
    count = len(feat_s)
    return {"loss": [loss], "weight": [weight], "mse": [mse], "d_feat_s": found[:count], "d_parameters": found[count:]}


def _largest_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = zip(values, exact, strict=True)
    return max(float((x.double() - y.double()).norm() / (y.double().norm() + 1e-300)) for x, y in pairs)


def _errors(kind: str) -> Row:
    ours, plain, exact = (make_step(Problem(what, "cifar", kind)) for what in ("ours", "plain", "plain"))
    modules = {"ours": (ours, TYPES[kind]), "plain": (plain, TYPES[kind]), "exact": (exact, torch.float64)}
    exact.module.double()
    found = {}
    for name, (step, dtype) in modules.items():
        step.module.load_state_dict(ours.module.state_dict())
        maps = [[x.detach() for x in layers] for layers in (ours.feat_s, ours.feat_t)]
        found[name] = _results(step.module, kind, dtype, maps)
    return {
        quantity: {name: _largest_error(found[name][quantity], exact_values) for name in ("ours", "plain")}
        for quantity, exact_values in found["exact"].items()
    }


def errors(timers: Timers, small: bool) -> Iterator[Row]:
    for kind in TYPES:
        if timers.left() > 10:
            yield guarded(lambda kind=kind: _errors(kind), kind=kind)  # type: ignore[misc]


def _times(problem: Problem, compiled: bool, seconds: float) -> Row:
    begin = time.monotonic()
    step = make_step(problem, compiled)
    step()
    torch.cuda.synchronize()
    row: Row = {"first_s": round(time.monotonic() - begin, 2)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) >> 20
    eager = median_ms(step, seconds)
    row |= {"eager_ms": eager["ms"], "host_ms": eager["host_ms"]}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = step.capture()
    row["graph_ms"] = median_ms(graph.replay, seconds)["ms"]
    return row


def times(network: str, timers: Timers, small: bool) -> Iterator[Row]:
    predicted = predictions()
    for batch in BATCHES[network][: 1 if small else None]:
        for kind in ("bf16", "fp32"):
            for name, problem in CONTENDERS.items():
                chosen = replace(problem, network=network, kind=kind, batch=batch)
                is_compiled = name.endswith("compiled")
                if timers.left() < 15 or (small and is_compiled):
                    continue
                labels = {"network": network, "batch": batch, "kind": kind, "what": name}
                row = guarded(
                    lambda p=chosen, c=is_compiled: _times(p, c, 0.0 if small else 1.0),  # type: ignore[misc]
                    **labels,
                )
                known = predicted.get(f"{chosen.key} {batch}")
                row["predicted_ms"] = known["predicted_ms"] if known and not is_compiled and chosen.nhwc else None
                torch.cuda.empty_cache()
                yield row


def _profile(problem: Problem) -> Row:
    from torch.profiler import ProfilerActivity, profile

    step = make_step(problem)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name[:120], []).append(event.device_time_total)
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:80]
    return {
        "launches": sum(map(len, kernels.values())),
        "device_us": round(sum(map(sum, kernels.values())), 1),
        "kernels": {name: [len(us), round(sum(us), 1)] for name, us in longest},
    }


def profiles(timers: Timers, small: bool) -> Iterator[Row]:
    predicted = predictions()
    for network, batch, name in (("cifar", 64, "ours"), ("cifar", 64, "plain NHWC"), ("imagenet", 256, "ours")):
        if timers.left() < 10:
            return
        problem = replace(CONTENDERS[name], network=network, batch=batch)
        row = guarded(lambda p=problem: _profile(p), network=network, batch=batch, what=name)  # type: ignore[misc]
        yield {**row, "predicted": predicted.get(f"{problem.key} {batch}")}


def _vendor(channels: int, side: int, batch: int, seconds: float) -> Row:
    x = torch.randn(batch, channels, side, side, device="cuda", dtype=torch.bfloat16).to(memory_format=NHWC)
    weight = torch.randn(channels, channels, 3, 3, device="cuda", dtype=torch.bfloat16).to(memory_format=NHWC)
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    flops = 2 * y.numel() * channels * 9
    one = [1, 1]

    def backward(*mask: bool) -> None:
        torch.ops.aten.convolution_backward(y, x, weight, None, one, one, one, False, [0, 0], 1, [*mask, False])

    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, padding=1),
        "d_input": lambda: backward(True, False),
        "d_weight": lambda: backward(False, True),
    }
    row: Row = {}
    for name, call in calls.items():
        ms = median_ms(call, seconds)["ms"]
        row[name] = {"us": round(1e3 * ms, 2), "tflops": round(flops / ms / 1e9, 1)}
    return row


def vendor(timers: Timers, small: bool) -> Iterator[Row]:
    for repeatable in (True, False):
        torch.backends.cudnn.deterministic = repeatable
        for network, shapes in CONVOLUTIONS.items():
            batch = BATCHES[network][0]
            for channels, side in shapes:
                if timers.left() > 5:
                    labels = {"channels": channels, "side": side, "batch": batch, "deterministic": repeatable}
                    yield guarded(
                        lambda c=channels, s=side, b=batch: _vendor(c, s, b, 0.0 if small else 0.15),  # type: ignore[misc]
                        **labels,
                    )


SECTIONS: dict[str, Callable[[Timers, bool], Iterator[Row]]] = {
    "errors": errors,
    "cifar": lambda timers, small: times("cifar", timers, small),
    "profile": profiles,
    "vendor": vendor,
    "imagenet": lambda timers, small: times("imagenet", timers, small),
}


def measure(section: str, path: Path, seconds: float, small: bool = False) -> int:
    """Runs a section; 1 where a row has an error or there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows: list[Row] = []
    for row in SECTIONS[section](Timers(seconds), small):
        rows.append(row)
        print(json.dumps(row), flush=True)
        path.write_text(json.dumps({**machine, "section": section, "rows": rows}, indent=1) + "\n")
    return int(not rows or any("error" in row for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, required=True, help="file of the rows")
    parser.add_argument("--seconds", type=float, default=100, help="no measurement begins after these")
    parser.add_argument("--small", action="store_true", help="few repetitions, nothing compiled by torch: a rehearsal")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 1
    return measure(options.section, options.out, options.seconds, options.small)


if __name__ == "__main__":
    sys.exit(main())
