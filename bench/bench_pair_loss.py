"""The pair loss against the reference: eager, compiled, and each backend, forward alone and forward + backward.

    pytest bench/bench_pair_loss.py             quick: two shapes and the overhead
    pytest bench/bench_pair_loss.py --full      every shape and type

Bytes are the floor of the kernel headers: 2 transfers an element forward, 5 forward + backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor

from semckd_kernels import backends, functional
from semckd_kernels.backends import reference

from .harness import Contender, copy_contender, input_sets, interleave, machine, peak_bytes, served
from .results import Row
from .shapes import NETWORK_PAIRS, NetworkPair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = [("resnet32x4-resnet8x4", "fp32"), ("resnet32x4-resnet8x4", "bf16"), ("vgg13-vgg8", "fp32"), ("tiny", "fp32")]
FULL = [(name, dtype) for name in NETWORK_PAIRS if name != "overhead" for dtype in DTYPES]
TRANSFERS = {"forward": 2, "forward+backward": 5}


@dataclass
class Inputs:
    s: list[list[Tensor]]
    t: list[list[Tensor]]
    weight: Tensor

    def leaves(self) -> list[Tensor]:
        return [*chain.from_iterable(self.s), self.weight]


def make_inputs(pair: NetworkPair, dtype: torch.dtype, seed: int) -> Inputs:
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    shapes = pair.pairs()
    s = [[rand(pair.batch, *shape).to(dtype).requires_grad_() for shape in row] for row in shapes]
    t = [[rand(pair.batch, *shape).to(dtype) for shape in row] for row in shapes]
    weight = rand(pair.batch, len(shapes), len(shapes[0])).softmax(-1).requires_grad_()
    return Inputs(s, t, weight)


def reference_loss(x: Inputs) -> Tensor:
    s, t = [*chain.from_iterable(x.s)], [*chain.from_iterable(x.t)]
    return reference.pair_loss(s, t, x.weight, False)[0]


def own_type_loss(x: Inputs) -> Tensor:
    """The reference without its conversion to fp32: what a bf16 trainer without autocast would run."""
    s, t = [*chain.from_iterable(x.s)], [*chain.from_iterable(x.t)]
    errors = [F.mse_loss(a, b, reduction="none").flatten(1).mean(1) for a, b in zip(s, t, strict=True)]
    mse = torch.stack(errors, 1).view_as(x.weight)
    return (x.weight * mse).sum() / (x.weight.shape[0] * x.weight.shape[1])


def fused_loss(backend: str, inplace: bool = False) -> Any:
    return lambda x: functional.semckd_loss(x.s, x.t, x.weight, backend=backend, inplace_backward=inplace)


def contenders_for(dtype: torch.dtype, backward: bool) -> list[Contender]:
    losses = {"reference": reference_loss, "reference compiled": torch.compile(reference_loss, dynamic=False)}
    if dtype != torch.float32:
        losses["reference in own type"] = own_type_loss
    fastest = backends.resolve(None, DEVICE)
    ours = {name: fused_loss(name) for name in served(DEVICE, "pair_loss") if name != fastest}

    if not backward:
        runs = {**losses, **ours, fastest: fused_loss(fastest)}

        def forward(loss: Any) -> Any:
            return lambda x: loss(detached(x))

        return [Contender(name, forward(loss)) for name, loss in runs.items()]

    def step(loss: Any) -> Any:
        return lambda x: torch.autograd.grad(loss(x), x.leaves())

    def fresh_projections(x: Inputs) -> Inputs:
        # results of the graph, as a projection's last convolution leaves them
        return Inputs([[y * 1 for y in row] for row in x.s], x.t, x.weight)

    result = [Contender(name, step(loss)) for name, loss in {**losses, **ours}.items()]
    inplace = f"{fastest} inplace_backward"
    result.append(Contender(inplace, step(fused_loss(fastest, inplace=True)), fresh_projections))
    return [*result, Contender(fastest, step(fused_loss(fastest)))]


def detached(x: Inputs) -> Inputs:
    return Inputs([[y.detach() for y in row] for row in x.s], x.t, x.weight.detach())


def check_results(contenders: list[Contender], x: Inputs, backward: bool) -> None:
    """No row for a wrong result."""
    exact_x = Inputs(*([[y.detach().double() for y in row] for row in rows] for rows in (x.s, x.t)), x.weight.double())
    for row in exact_x.s:
        for y in row:
            y.requires_grad_()
    exact_x.weight = exact_x.weight.detach().requires_grad_()

    def values(run: Any, on: Inputs) -> list[Tensor]:
        out = run(on)
        return list(out) if isinstance(out, (list, tuple)) else [out.detach()]

    exact = values(
        lambda y: torch.autograd.grad(reference_loss(y), y.leaves()) if backward else reference_loss(y), exact_x
    )
    eager = values(contenders[0].run, x)
    for contender in contenders:
        if contender.name == "reference in own type":
            # rounds every square to its own type: a baseline of speed, not of accuracy
            continue
        for n, value in enumerate(values(contender.run, contender.prepare(x))):
            assert_close(value, eager[n], exact[n], f"{contender.name}, result {n}")


@pytest.mark.parametrize("direction", TRANSFERS)
def test_pair_loss(shape: str, dtype: str, direction: str, benchmark: Any, rows: list[Row]) -> None:
    pair, kind, backward = NETWORK_PAIRS[shape].on(DEVICE), DTYPES[dtype], direction != "forward"
    transfer = pair.elements() * kind.itemsize
    count = input_sets(2 * transfer, DEVICE)
    inputs = [make_inputs(pair, kind, seed) for seed in range(count)]
    contenders = contenders_for(kind, backward)
    torch.compiler.reset()
    check_results(contenders, inputs[0], backward)
    copy = copy_contender(pair.elements(), kind, DEVICE, count)
    # nothing but host overhead in the one, nothing but memory in the other
    rounds, calls = (50, 20) if shape == "tiny" else (30, 1)
    interleave([copy, *contenders], inputs, rounds, DEVICE, benchmark, calls)

    eager, compiled = contenders[:2]
    copy_speed = 2 * transfer / copy.quantile_ms(50)
    for contender in [copy, *contenders]:
        moved = (2 if contender is copy else TRANSFERS[direction]) * transfer
        speed = moved / contender.quantile_ms(50)
        row = Row(
            op="pair_loss",
            backend=contender.name,
            direction=direction,
            dtype=dtype,
            shape=shape,
            batch=pair.batch,
            **contender.quantiles(),
            mbytes=moved / 1e6,
            gbytes_s=speed / 1e6,
            copy_percent=100 * speed / copy_speed,
            over_reference=contender.speedup_over(eager),
            over_same=contender.speedup_over(eager),
            over_compiled=contender.speedup_over(compiled),
            peak_mbytes=0.0 if contender is copy else peak_of(contender, inputs[0]) / 1e6,
            **machine(DEVICE),
        )
        rows.append(row)
    torch.compiler.reset()


def peak_of(contender: Contender, inputs: Inputs) -> int:
    argument = contender.prepare(inputs)
    return peak_bytes(lambda: contender.run(argument), DEVICE)
