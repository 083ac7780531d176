"""A whole training step of student, teacher and criterion: plain KD, SemCKD by the reference, SemCKD by ours.

    pytest bench/                          in short: one pair of networks in fp32 and NCHW, at half the batch
    pytest bench/bench_step.py             one pair of networks in fp32, and the overhead
    pytest bench/bench_step.py --full      every pair, bf16 as well

``over_kd`` is what SemCKD costs: the median over rounds of a step's time by that of plain KD (no SemCKD) in the same
type and layout, next to it in the same run. A step is the student forward and backward, the teacher forward without
gradients, cross-entropy and KL divergence, the criterion, and SGD with momentum and weight decay.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("torchvision", reason="the networks are torchvision's")

from semckd_kernels import SemCKD
from semckd_kernels.training.methods import kd_loss
from semckd_kernels.training.models import FeatureNet

from .criteria import (
    BASELINE,
    DEVICE,
    LAYOUTS,
    REFERENCE,
    Form,
    Maps,
    Runner,
    check_output,
    exact_output,
    interleave_on,
    make_criterion,
    settings,
    with_backend,
)
from .harness import Contender, machine, peak_bytes, served
from .models import NETWORKS, Networks
from .results import Row
from .shapes import NETWORK_PAIRS, NetworkPair

QUICK = [("resnet32x4-resnet8x4", "fp32"), ("overhead", "fp32")]
# host overhead is that of any type
FULL = [(name, "fp32" if name == "overhead" else "all") for name in NETWORKS]
INPUT_SETS = 2
TEMPERATURE = 4.0
# so small that networks which are not trained stay where they are: what matters is that the step is taken
LEARNING_RATE = 1e-5
KD = "KD"

Batch = tuple[Tensor, Tensor]  # images [B, 3, H, W], labels [B]


class Setup:
    """Networks, criterion and optimisers of one layout, shared by all steps in it."""

    def __init__(self, networks: Networks, pair: NetworkPair, layout: str) -> None:
        torch.manual_seed(0)
        form = {"device": DEVICE, "memory_format": LAYOUTS[layout]}
        self.beta = networks.beta
        self.student: FeatureNet = networks.student().to(**form).train()
        self.teacher: FeatureNet = networks.teacher().to(**form).eval().requires_grad_(False)
        self.criterion: SemCKD = make_criterion(pair, networks.class_token).to(**form)
        student = list(self.student.parameters())
        self.kd_optimizer = self._optimizer(student)
        self.optimizer = self._optimizer([*student, *self.criterion.parameters()])

    @staticmethod
    def _optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)


class Step:
    """A training step; of plain KD where the form's backend is ``KD``."""

    def __init__(self, form: Form, setup: Setup) -> None:
        self.form, self.setup = form, setup
        is_kd = form.backend == KD
        self.criterion = None if is_kd else with_backend(setup.criterion, form.backend)
        self.optimizer = setup.kd_optimizer if is_kd else setup.optimizer

    def __call__(self, batch: Batch) -> Tensor:
        images, labels = batch
        with self.form.autocast():
            with torch.no_grad():
                teacher = self.setup.teacher(images)
            student = self.setup.student(images)
            loss = F.cross_entropy(student.logits, labels) + kd_loss(student.logits, teacher.logits, TEMPERATURE)
            if self.criterion is not None:
                loss = loss + self.setup.beta * self.criterion(student.maps, teacher.maps).loss
        loss.backward()
        self.optimizer.step()
        # nothing is left behind that the next contender would free
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def make_batches(networks: Networks, pair: NetworkPair, seed: int) -> dict[str, Batch]:
    """The same images and labels in each layout."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    size = (pair.batch, 3, networks.side, networks.side)
    images = torch.randn(size, generator=generator, device=DEVICE)
    labels = torch.randint(networks.classes, (pair.batch,), generator=generator, device=DEVICE)
    return {name: (images.contiguous(memory_format=layout), labels) for name, layout in LAYOUTS.items()}


def check_maps(pair: NetworkPair, networks: Networks, maps: Maps) -> None:
    """The networks give the maps that ``shapes`` says."""
    for expected, found in ((pair.student, maps.student), (pair.teacher, maps.teacher)):
        for (c, h, w), x in zip(expected, found, strict=True):
            tokens = (h * w + networks.class_token, c)
            assert tuple(x.shape[1:]) in ((c, h, w), tokens), f"{tuple(x.shape[1:])} is not {(c, h, w)}"


def check_criterion(form: Form, setup: Setup, batch: Batch, pair: NetworkPair, networks: Networks) -> None:
    """Ours against the reference on the networks' own maps: no row for a wrong result.

    Gradients are checked by ``bench_criterion`` and the tests, on small maps: see ``criteria.check_small``.
    """
    with torch.no_grad(), form.autocast():
        found = Maps(setup.student(batch[0]).maps, setup.teacher(batch[0]).maps)
    check_maps(pair, networks, found)
    # autocast need not make maps half precision: a transformer's are not
    maps = found.to(form.layout, found.student[0].dtype)
    exact = exact_output(setup.criterion, maps)
    eager = Runner(form.same_as(REFERENCE), setup.criterion).forward(maps)
    check_output(Runner(form, setup.criterion).forward(maps), eager, exact, form.label)


def test_step(shape: str, dtype: str, short: bool, benchmark: Any, rows: list[Row]) -> None:
    networks, pair = NETWORKS[shape], NETWORK_PAIRS[shape].on(DEVICE, whole_step=True, short=short)
    setups = {layout: Setup(networks, pair, layout) for layout in LAYOUTS}
    inputs = [make_batches(networks, pair, seed) for seed in range(INPUT_SETS)]
    fused = served(DEVICE, "criterion")
    wanted = [Form(name, *setting) for setting in settings(dtype, short) for name in (KD, REFERENCE, *fused)]
    contenders = {}
    for form in wanted:
        setup = setups[form.layout]
        if form.backend in fused:
            check_criterion(form, setup, inputs[0][form.layout], pair, networks)
        step = Step(form, setup)
        contenders[form] = Contender(form.label, step, lambda batches, layout=form.layout: batches[layout])
        step(inputs[0][form.layout])
    interleave_on(shape, [*contenders.values()], inputs, benchmark, short)

    for form, contender in contenders.items():
        batch = inputs[0][form.layout]
        row = Row(
            op="step",
            backend=form.name,
            direction="step",
            dtype=form.dtype,
            shape=shape,
            batch=pair.batch,
            **contender.quantiles(),
            over_reference=contender.speedup_over(contenders[BASELINE]),
            peak_mbytes=peak_bytes(lambda c=contender, b=batch: c.run(b), DEVICE, warm_up=False) / 1e6,
            layout=form.layout,
            over_same=contender.speedup_over(contenders[form.same_as(REFERENCE)]),
            over_kd=contenders[form.same_as(KD)].speedup_over(contender),
            **machine(DEVICE),
        )
        rows.append(row)
