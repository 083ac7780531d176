"""The whole criterion in every form that a trainer could give it, and the check that all of them compute the same.

A form is a backend, a type, a layout and a way of launching. All forms of one layout share their parameters, so that a
difference of results is one of the forms.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from tolerances import assert_close
from torch import Tensor

from semckd_kernels import SemCKD, SemCKDOutput

from .harness import Contender, interleave, served
from .shapes import NetworkPair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# bf16 is autocast: parameters stay fp32, and maps are bf16, as they come out of a student's convolutions
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# gradients are compared over several: a short vector may be close to exact by luck, the reference's as well as ours
CHECKED_BATCHES = 3
# the batch that the attention is built for there: in two or three dimensions, as a small batch would give it, some key
# is nearly zero before it is divided by its length, and any rounding is magnified
CHECKED_WIDTH = 64
# a ReLU's input, of variance one, that fp32 may round to the other side of zero
ROUNDING = 4e-6
# what a test's ``dtype`` stands for; one run, since the types are compared
TYPES_OF = {"fp32": ("fp32",), "all": ("fp32", "bf16")}
REFERENCE = "reference"
# of the criterion, and of whole steps
ROUNDS = 30
BUDGET_S = {"cpu": 180.0, "cuda": 15.0}[DEVICE]
SHORT_BUDGET_S = 15.0


def interleave_on(
    shape: str, contenders: Sequence[Contender], inputs: Sequence[Any], benchmark: Any, short: bool
) -> None:
    """:func:`.harness.interleave` for the criterion, or whole steps, of a pair of networks."""
    # nothing but host overhead where the maps are tiny
    calls = 5 if shape == "overhead" else 1
    budget_s = SHORT_BUDGET_S if short else BUDGET_S
    interleave(contenders, inputs, ROUNDS, DEVICE, benchmark, calls, budget_s, settle=True)


class Maps(NamedTuple):
    """Feature maps of a batch: the student's with gradients, the teacher's without."""

    student: list[Tensor]
    teacher: list[Tensor]

    def to(self, layout: str, dtype: torch.dtype) -> Maps:
        """Copies that begin a graph."""

        def converted(x: Tensor) -> Tensor:
            x = x.detach().to(dtype)
            # tokens [B, N, c] have one layout only
            return x.clone(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x.clone()

        return Maps([converted(x).requires_grad_() for x in self.student], [converted(x) for x in self.teacher])


class Results(NamedTuple):
    """What a form computes; gradients are those of the student's maps and of all parameters, in that order."""

    output: SemCKDOutput
    gradients: Sequence[Tensor]


@dataclass(frozen=True)
class Form:
    """One way to run the criterion.

    Args:
        backend: ``"reference"`` or one of ours.
        dtype: of ``DTYPES``.
        layout: of ``LAYOUTS``: maps' and parameters'.
        launch: ``""``, ``"compiled"`` (``torch.compile``) or ``"graph"`` (one CUDA graph of forward and backward).
    """

    backend: str
    dtype: str
    layout: str
    launch: str = ""

    @property
    def name(self) -> str:
        """As it stands in the row's ``backend``."""
        return f"{self.backend} {self.launch}".strip()

    @property
    def label(self) -> str:
        return f"{self.name}, {self.dtype}, {self.layout}"

    def same_as(self, backend: str, launch: str = "") -> Form:
        """Another form in the same type and layout."""
        return Form(backend, self.dtype, self.layout, launch)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(DEVICE, dtype=DTYPES[self.dtype])


# the reference as it ships: what every row is compared with
BASELINE = Form(REFERENCE, "fp32", "nchw")


def settings(dtype: str, short: bool = False) -> list[tuple[str, str]]:
    """The types and layouts to measure: half precision in channels_last only, which is what it is fast in.

    In short: the baseline's alone.
    """
    if short:
        return [(BASELINE.dtype, BASELINE.layout)]
    both = [("fp32", layout) for layout in LAYOUTS]
    return both if "bf16" not in TYPES_OF[dtype] else [*both, ("bf16", "channels_last")]


def forms(dtype: str, compiled: bool, short: bool = False) -> list[Form]:
    """All forms of a run, the baseline first."""
    result = []
    for kind, layout in settings(dtype, short):
        result.append(Form(REFERENCE, kind, layout))
        if compiled:
            result.append(Form(REFERENCE, kind, layout, "compiled"))
        fused = served(DEVICE, "criterion")
        if DEVICE == "cuda" and layout == "channels_last":
            result += [Form(backend, kind, layout, "graph") for backend in (REFERENCE, *fused)]
        result += [Form(backend, kind, layout) for backend in fused]
    return result


def make_criterion(pair: NetworkPair, class_token: bool = False) -> SemCKD:
    torch.manual_seed(0)
    s_n, t_n = ([c for c, _, _ in maps] for maps in (pair.student, pair.teacher))
    return SemCKD(pair.batch, s_n, t_n, backend=REFERENCE, class_token=class_token).to(DEVICE)


def make_maps(pair: NetworkPair, seed: int) -> Maps:
    """Maps as ReLUs leave them."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def rand(shape: Sequence[int]) -> Tensor:
        return torch.randn((pair.batch, *shape), generator=generator, device=DEVICE).relu_()

    return Maps([rand(shape) for shape in pair.student], [rand(shape) for shape in pair.teacher])


def by_layout(criterion: SemCKD) -> dict[str, SemCKD]:
    """The criterion once in each layout."""
    return {name: copy.deepcopy(criterion).to(memory_format=layout) for name, layout in LAYOUTS.items()}


def with_backend(criterion: SemCKD, backend: str) -> SemCKD:
    """The same parameters under another backend."""
    view = copy.copy(criterion)
    view.backend = backend
    return view


class Runner:
    """A form with its parameters.

    Args:
        form: what it is.
        criterion: the parameters, in the form's layout; shared with other runners.
    """

    def __init__(self, form: Form, criterion: SemCKD) -> None:
        self.form = form
        self.module = with_backend(criterion, form.backend)
        self.parameters = list(criterion.parameters())
        self.call: Callable[..., SemCKDOutput] = self.module
        if form.launch == "compiled":
            self.call = torch.compile(self.module, dynamic=False)

    def forward(self, maps: Maps) -> SemCKDOutput:
        with self.form.autocast():
            return self.call(maps.student, maps.teacher)

    def run(self, maps: Maps) -> Results:
        output = self.forward(maps)
        return Results(output, torch.autograd.grad(output.loss, [*maps.student, *self.parameters]))

    def captured(self, maps: Maps) -> Callable[[Any], Results]:
        """Forward and backward on these maps as one CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # kernels are compiled and libraries make their workspaces outside the capture
            for _ in range(3):
                self.run(maps)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.run(maps)

        def replay(_: Any) -> Results:
            graph.replay()
            return results

        return replay


def exact_results(criterion: SemCKD, maps: Maps) -> tuple[Results, float]:
    """Output and gradients in fp64, on the same values; and how close to zero an input of a ReLU comes."""
    exact = copy.deepcopy(criterion).double()
    nearest = []
    for module in exact.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _given, x: nearest.append(x.detach().abs().min()))
    results = Runner(BASELINE, exact).run(maps.to("nchw", torch.float64))
    return results, torch.stack(nearest).min().item()


@torch.no_grad()
def exact_output(criterion: SemCKD, maps: Maps) -> SemCKDOutput:
    """Loss, attention and pair errors in fp64."""
    exact = with_backend(copy.deepcopy(criterion).double(), REFERENCE)
    return exact([x.double() for x in maps.student], [x.double() for x in maps.teacher])


def check_output(value: SemCKDOutput, eager: SemCKDOutput, exact: SemCKDOutput, what: str) -> None:
    """The loss is compared together with the pair errors it sums up: a single number may be right by luck."""

    def loss_and_mse(output: SemCKDOutput) -> Tensor:
        return torch.cat([output.loss.detach().view(1), output.pair_mse.flatten()])

    assert_close(loss_and_mse(value), loss_and_mse(eager), loss_and_mse(exact), f"{what}: loss and pair_mse")
    assert_close(value.weight, eager.weight, exact.weight, f"{what}: weight")


def check_small(pair: NetworkPair, wanted: Sequence[Form]) -> None:
    """Every result and gradient of our forms on small maps: no row for a wrong result.

    At full size a few ReLUs of millions fall on the other side of zero, in any two precisions, and decide how far
    gradients are apart: there :func:`check_output` has to do. Here, in fp32, batches with such a ReLU are passed over.
    """
    small = pair.small()
    criteria = by_layout(make_criterion(replace(small, batch=CHECKED_WIDTH)))
    for form in wanted:
        if form.backend == REFERENCE or form.launch:
            continue
        own = criteria[form.layout]
        ours, reference = Runner(form, own), Runner(form.same_as(REFERENCE), own)
        names = [f"map {i}" for i in range(len(small.student))] + [name for name, _ in own.named_parameters()]
        gradients: dict[str, list[tuple[Tensor, ...]]] = {}
        for maps, exact in _batches(small, form, own):
            value, eager = ours.run(maps), reference.run(maps)
            check_output(value.output, eager.output, exact.output, form.label)
            for name, *three in zip(names, value.gradients, eager.gradients, exact.gradients, strict=True):
                gradients.setdefault(_group(name), []).append(tuple(x.flatten() for x in three))
        for name, found in gradients.items():
            assert_close(*(torch.cat(parts) for parts in zip(*found, strict=True)), f"{form.label}: gradient of {name}")


def _batches(pair: NetworkPair, form: Form, criterion: SemCKD) -> Iterator[tuple[Maps, Results]]:
    """Maps to compare on, and exact results."""
    found = 0
    for seed in itertools.count():
        maps = make_maps(pair, seed).to(form.layout, DTYPES[form.dtype])
        exact, nearest = exact_results(criterion, maps)
        # in half precision ReLUs flip by the hundred, in the reference as in ours
        if form.dtype != "fp32" or nearest > ROUNDING:
            yield maps, exact
            found += 1
        if found == CHECKED_BATCHES:
            return
        assert seed < 100, "every batch has a ReLU next to zero: take smaller maps"


def _group(name: str) -> str:
    """The name itself, but one for all layers of the attention, whose vectors have a few values each."""
    layer, _, rest = name.partition(".")
    return f"attention's {rest}" if layer.startswith(("query_weight", "key_weight")) else name
