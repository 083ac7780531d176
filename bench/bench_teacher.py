"""The frozen teacher's forward pass with maps: as people write it, compiled, and prepared; and a step with it.

    pytest bench/bench_teacher.py          two teachers in fp32, and a step of one
    pytest bench/bench_teacher.py --full   every convolutional teacher, and bf16

``over_same`` divides the time of the eager network in channels_last, ``over_compiled`` of its compiled form. A step's
``over_kd`` is by that of plain KD in channels_last whose teacher is as people write it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="the networks are torchvision's")

from tolerances import assert_close

import semckd_kernels as sk
from semckd_kernels.training.models import FeatureNet, Output

from .bench_step import KD, Setup, Step, make_batches
from .criteria import DEVICE, DTYPES, Form
from .harness import Contender, interleave, machine, peak_bytes, served
from .models import NETWORKS
from .results import Row
from .shapes import NETWORK_PAIRS

QUICK = [("resnet32x4-resnet8x4", "fp32"), ("resnet34-resnet18-imagenet", "fp32")]
FULL = [*((shape, dtype) for shape, _ in QUICK for dtype in DTYPES), ("vgg13-vgg8", "fp32")]
STEP_SHAPE = "resnet32x4-resnet8x4"
LAYOUT = "channels_last"
ROUNDS = 30
BUDGET_S, STEP_BUDGET_S, SHORT_BUDGET_S = 40.0, 60.0, 3.0


class Way(NamedTuple):
    """A teacher, and how its forward pass is run."""

    net: FeatureNet
    run: Callable[[Tensor], Output]


def trained(net: FeatureNet) -> FeatureNet:
    """With BatchNorms that are not the identity, frozen."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for x in (module.weight, module.bias, module.running_mean, module.running_var):
                assert x is not None
                x.data += 0.2 * torch.rand(x.shape, generator=generator).to(x.device)
    return net.eval().requires_grad_(False)


def ways(net: FeatureNet, dtype: torch.dtype, compiled: bool) -> dict[str, Way]:
    """Forms of a teacher in channels_last; each is a copy."""
    found = {}
    for name in ("eager", "compiled", "prepared"):
        own = copy.deepcopy(net).to(memory_format=torch.channels_last)
        if name == "prepared":
            own = FeatureNet(sk.prepare_teacher(own.net, own.layers, dtype=dtype), own.layers)
        elif name == "compiled":
            own.compile()
        autocast = torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32 and name != "prepared")

        def run(images: Tensor, own: FeatureNet = own, autocast: Any = autocast) -> Output:
            with torch.no_grad(), autocast:
                output: Output = own(images)
                return output

        if name != "compiled" or compiled:
            found[name] = Way(own, run)
    return found


def check(found: dict[str, Way], net: FeatureNet, images: Tensor) -> None:
    """No row for a wrong result: maps and logits against fp64, by what the eager network reaches."""
    few = images[:2]
    exact = copy.deepcopy(net).double()(few.double())
    eager, prepared = (found[name].run(few) for name in ("eager", "prepared"))
    results = [(x.logits, *x.maps) for x in (prepared, eager, exact)]
    for n, (value, usual, right) in enumerate(zip(*results, strict=True)):
        assert_close(value, usual.to(value.dtype), right, f"result {n}")


def test_teacher(shape: str, dtype: str, short: bool, benchmark: Any, rows: list[Row]) -> None:
    networks, pair = NETWORKS[shape], NETWORK_PAIRS[shape].on(DEVICE, whole_step=True, short=short)
    torch.manual_seed(0)
    net = trained(networks.teacher().to(DEVICE))
    inputs = [make_batches(networks, pair, seed)[LAYOUT][0] for seed in range(2)]
    found = ways(net, DTYPES[dtype], compiled=not short)
    check(found, net, inputs[0])
    contenders = {name: Contender(f"{name}, {dtype}", way.run) for name, way in found.items()}
    for contender in contenders.values():
        # compilation
        contender.run(inputs[0])
    interleave([*contenders.values()], inputs, ROUNDS, DEVICE, benchmark, 1, SHORT_BUDGET_S if short else BUDGET_S)
    rows += [
        Row(
            op="teacher",
            backend=name,
            direction="forward",
            dtype=dtype,
            shape=shape,
            batch=pair.batch,
            **contender.quantiles(),
            over_reference=contender.speedup_over(contenders["eager"]),
            over_compiled=contender.speedup_over(contenders["compiled"]) if "compiled" in contenders else 0.0,
            peak_mbytes=peak_bytes(lambda c=contender: c.run(inputs[0]), DEVICE, warm_up=False) / 1e6,
            layout=LAYOUT,
            over_same=contender.speedup_over(contenders["eager"]),
            **machine(DEVICE),
        )
        for name, contender in contenders.items()
    ]


def test_step_with_it(short: bool, benchmark: Any, rows: list[Row]) -> None:
    if short:
        pytest.skip("a step takes seconds")
    networks, pair = NETWORKS[STEP_SHAPE], NETWORK_PAIRS[STEP_SHAPE].on(DEVICE, whole_step=True)
    plain, prepared = (Setup(networks, pair, LAYOUT) for _ in range(2))
    prepared.teacher.prepare()
    inputs = [make_batches(networks, pair, seed)[LAYOUT] for seed in range(2)]
    (ours, *_) = served(DEVICE, "criterion")
    steps = {
        KD: Step(Form(KD, "fp32", LAYOUT), plain),
        ours: Step(Form(ours, "fp32", LAYOUT), plain),
        f"{ours} prepared": Step(Form(ours, "fp32", LAYOUT), prepared),
    }
    contenders = {name: Contender(name, step) for name, step in steps.items()}
    for contender in contenders.values():
        contender.run(inputs[0])
    interleave([*contenders.values()], inputs, ROUNDS, DEVICE, benchmark, 1, STEP_BUDGET_S, settle=True)
    rows += [
        Row(
            op="teacher",
            backend=name,
            direction="step",
            dtype="fp32",
            shape=STEP_SHAPE,
            batch=pair.batch,
            **contender.quantiles(),
            peak_mbytes=peak_bytes(lambda c=contender: c.run(inputs[0]), DEVICE, warm_up=False) / 1e6,
            layout=LAYOUT,
            over_kd=contenders[KD].speedup_over(contender),
            **machine(DEVICE),
        )
        for name, contender in contenders.items()
    ]
