"""The whole criterion, forward + backward, against the reference: eager, compiled, in both layouts, and under autocast.

    pytest bench/                               in short: one pair of networks in fp32 and NCHW, at half the batch
    pytest bench/bench_criterion.py             one pair of networks in fp32, and the overhead; not compiled
    pytest bench/bench_criterion.py --full      every pair, bf16 as well, and the reference under torch.compile

Bytes are the floor: maps and parameters read, gradients of the student's maps and of the parameters written. Arithmetic
bounds the criterion on a CPU, so that ``copy_percent`` is small there.
"""

from __future__ import annotations

from typing import Any

import torch

from .criteria import (
    BASELINE,
    DEVICE,
    DTYPES,
    REFERENCE,
    Form,
    Maps,
    Runner,
    by_layout,
    check_output,
    check_small,
    exact_output,
    forms,
    interleave_on,
    make_criterion,
    make_maps,
    settings,
)
from .harness import Contender, copy_contender, kept_bytes, machine, peak_bytes
from .results import Row
from .shapes import NETWORK_PAIRS, NetworkPair

QUICK = [("resnet32x4-resnet8x4", "fp32"), ("overhead", "fp32")]
# host overhead is that of any type
FULL = [(name, "fp32" if name == "overhead" else "all") for name in NETWORK_PAIRS if name != "tiny"]
# compilation takes a minute a form on two cores, and for the 144 projections of vit_tiny many minutes
COMPILED = {"resnet32x4-resnet8x4"} if DEVICE == "cpu" else {"resnet32x4-resnet8x4", "resnet34-resnet18-imagenet"}
# with the copy between them, and gigabytes of intermediate maps, no input survives in a cache until its next turn
INPUT_SETS = 2

Inputs = dict[tuple[str, str], Maps]


def make_inputs(pair: NetworkPair, dtype: str, short: bool) -> list[Inputs]:
    """The same maps in every type and layout of the run."""
    sets = []
    for seed in range(INPUT_SETS):
        maps = make_maps(pair, seed)
        sets.append({(kind, layout): maps.to(layout, DTYPES[kind]) for kind, layout in settings(dtype, short)})
    return sets


def make_contender(runner: Runner, inputs: Inputs) -> Contender:
    key = (runner.form.dtype, runner.form.layout)
    run = runner.captured(inputs[key]) if runner.form.launch == "graph" else runner.run
    return Contender(runner.form.label, run, lambda sets: sets[key])


def check_full(runners: list[Runner], contenders: list[Contender], inputs: Inputs, dtype: str) -> None:
    """Loss, attention and pair errors at full size, and every contender's first run."""
    exact = {kind: exact_output(runners[0].module, maps) for (kind, _), maps in inputs.items()}
    eager: dict[Form, Any] = {}
    for runner, contender in zip(runners, contenders, strict=True):
        form = runner.form
        output = contender.run(contender.prepare(inputs)).output
        eager.setdefault(form.same_as(REFERENCE), output)
        check_output(output, eager[form.same_as(REFERENCE)], exact[form.dtype], form.label)


def floor_bytes(pair: NetworkPair, runner: Runner) -> int:
    """Student's maps and their gradients, teacher's maps, parameters and their gradients, once each."""
    student, teacher = (pair.batch * sum(c * h * w for c, h, w in maps) for maps in (pair.student, pair.teacher))
    parameters = sum(x.numel() * x.itemsize for x in runner.parameters)
    return (2 * student + teacher) * DTYPES[runner.form.dtype].itemsize + 2 * parameters


def test_criterion(shape: str, dtype: str, full: bool, short: bool, benchmark: Any, rows: list[Row]) -> None:
    pair = NETWORK_PAIRS[shape].on(DEVICE, whole_step=True, short=short)
    torch.compiler.reset()
    wanted = forms(dtype, compiled=(full or short) and shape in COMPILED, short=short)
    check_small(pair, wanted)
    inputs, criteria = make_inputs(pair, dtype, short), by_layout(make_criterion(pair))
    runners = [Runner(form, criteria[form.layout]) for form in wanted]
    contenders = [make_contender(runner, inputs[0]) for runner in runners]
    check_full(runners, contenders, inputs[0], dtype)
    copy = copy_contender(pair.elements(), torch.float32, DEVICE, INPUT_SETS)
    interleave_on(shape, [copy, *contenders], inputs, benchmark, short)

    by_form = {runner.form: contender for runner, contender in zip(runners, contenders, strict=True)}
    copy_speed = 2 * pair.elements() * torch.float32.itemsize / copy.quantile_ms(50)
    for runner, contender in zip(runners, contenders, strict=True):
        form, moved = runner.form, floor_bytes(pair, runner)
        maps = inputs[0][form.dtype, form.layout]
        compiled = by_form.get(form.same_as(REFERENCE, "compiled"))
        speed = moved / contender.quantile_ms(50)
        given = (*maps.student, *maps.teacher, *runner.module.parameters(), *runner.module.buffers())
        row = Row(
            op="criterion",
            backend=form.name,
            direction="forward+backward",
            dtype=form.dtype,
            shape=shape,
            batch=pair.batch,
            **contender.quantiles(),
            mbytes=moved / 1e6,
            gbytes_s=speed / 1e6,
            copy_percent=100 * speed / copy_speed,
            over_reference=contender.speedup_over(by_form[BASELINE]),
            over_compiled=contender.speedup_over(compiled) if compiled else 0.0,
            # what a graph keeps for itself is what its run takes
            peak_mbytes=peak_bytes(lambda r=runner, m=maps: r.run(m), DEVICE, warm_up=False) / 1e6,
            layout=form.layout,
            over_same=contender.speedup_over(by_form[form.same_as(REFERENCE)]),
            kept_mbytes=kept_bytes(lambda r=runner, m=maps: r.forward(m), given) / 1e6,
            **machine(DEVICE),
        )
        rows.append(row)
    torch.compiler.reset()
