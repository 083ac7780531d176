"""What ``semckd train`` costs beside student, teacher, criterion and optimiser, and how many images a second it trains.

    pytest bench/bench_training.py             quick: the CIFAR pair in fp32
    pytest bench/bench_training.py --full      every pair, bf16 as well

``loop`` is the bare loop that anyone would write: teacher, student, criterion, ``backward()``, ``step()``. ``trainer``
is the step of ``training.loop`` with all that surrounds it: batches in memory, learning rates, timers, records and
their fetches. Both train from the same parameters on the same batches, interleaved, and must end with the same bits.
``graph`` is the trainer's step as one CUDA graph. ``over_same`` of a row is the loop's time by its own: 0.97 is an
overhead of 3%. The parts of the trainer's steps are rows of
their own, means over the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="the networks are torchvision's")

from semckd_kernels.training import config, presets
from semckd_kernels.training import preparation as setup
from semckd_kernels.training.data import Batch, Share
from semckd_kernels.training.data.memory import InMemory, Split
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.loop.monitor import Monitor
from semckd_kernels.training.loop.records import EpochSums
from semckd_kernels.training.run.folder import RunFolder

from .criteria import DEVICE
from .harness import Contender, interleave, machine, peak_bytes
from .results import Row

QUICK = [("resnet32x4-resnet8x4", "fp32")]
FULL = [
    (shape, dtype) for shape in ("resnet32x4-resnet8x4", "resnet34-resnet18-imagenet") for dtype in ("fp32", "bf16")
]
# name: preset, student, teacher, side, classes, images a step on the CPU and on a GPU
PAIRS = {
    "resnet32x4-resnet8x4": ("cifar100", "resnet8x4", "resnet32x4", 32, 100, 64, 64),
    "resnet34-resnet18-imagenet": ("imagenet", "torchvision/resnet18", "torchvision/resnet34", 224, 1000, 8, 256),
}
# a learning rate so small that random labels teach nothing: what matters is that the step is taken
LEARNING_RATE = 1e-5
# of training batches in memory; an epoch ends, and starts over, inside the measurement
BATCHES = 8
ROUNDS = 20
# a trainer that costs more than this is mended
MOST_OVERHEAD = 0.03
BUDGET_S = {"cpu": 60.0, "cuda": 20.0}[DEVICE]


def random_images(shape: str, batch_size: int) -> InMemory:
    """Random pixels of the pair's size, held in memory and augmented as CIFAR-100's are."""
    _, _, _, side, classes, _, _ = PAIRS[shape]
    generator = torch.Generator().manual_seed(0)
    count = BATCHES * batch_size
    images = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.randint(classes, (count,), generator=generator))
    names = [str(n) for n in range(classes)]
    normal = {"mean": [0.5] * 3, "std": [0.25] * 3, "white": 255.0}
    return InMemory(
        "random", names, split, split, share=Share(batch_size), device=torch.device(DEVICE), pad=4, **normal
    )


def make_config(shape: str, dtype: str, graph: bool) -> config.TrainConfig:
    preset, student, teacher, _, _, on_cpu, on_gpu = PAIRS[shape]
    batch_size = on_gpu if DEVICE == "cuda" else on_cpu
    values = {
        "teacher.name": teacher,
        # a name that is not read: the teacher's parameters are as good as any
        "teacher.weights": "random",
        "method.name": "semckd",
        "recipe.lr": LEARNING_RATE,
        "hardware.device": DEVICE,
        "hardware.precision": dtype,
        "hardware.channels_last": True,
        "hardware.deterministic": True,
        "hardware.cuda_graph": graph,
        "logging.tensorboard": False,
    }
    return config.replace(presets.preset(preset, student, batch_size=batch_size), **values)


def make_setup(run: config.TrainConfig, shape: str, monkeypatch: pytest.MonkeyPatch) -> setup.Setup:
    """As ``semckd train`` makes it, from images that lie on no disk and a teacher that no file holds."""
    monkeypatch.setattr(setup, "build_data", lambda *args: random_images(shape, run.recipe.batch_size))
    monkeypatch.setattr(setup.models, "load_weights", lambda *args: None)
    monkeypatch.setattr(setup, "weights_file", Path)
    return setup.prepare(run)


class Loop:
    """The bare loop's step."""

    def __init__(self, run: setup.Setup) -> None:
        self.run = run
        run.student.train()
        run.criterion.train()
        self.parameters = [*run.student.parameters(), *run.criterion.parameters()]
        recipe = run.config.recipe
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
        self.half = run.config.hardware.precision == "bf16"

    def __call__(self, batch: Batch) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.half):
            assert self.run.teacher is not None
            with torch.no_grad():
                teacher = self.run.teacher(batch.images)
            loss = self.run.criterion(self.run.student(batch.images), teacher, batch.labels).total
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class TrainerSteps:
    """Steps of the trainer one at a time, with everything that it does around them."""

    def __init__(self, run: setup.Setup, folder: Path) -> None:
        created = RunFolder(folder)
        created.create(run.config)
        self.trainer = engine.Trainer(run, created)
        self.trainer.monitor = Monitor(created, run.config, self.trainer.history, self.trainer.lr, 0, 0)
        self.parameters = list(self.trainer.distiller.parameters())
        self.steps = self._steps()
        self.seconds = 0.0

    def _steps(self) -> Iterator[None]:
        while True:
            self.trainer.step = 0
            yield from self.trainer.epoch_steps()

    def __call__(self, _: Any) -> None:
        begin = time.perf_counter()
        next(self.steps)
        self.seconds += time.perf_counter() - begin

    def begin(self) -> None:
        """Forgets the times of the steps so far."""
        self.trainer._fetch()
        self.trainer.sums = EpochSums(len(self.trainer.sums.values), self.trainer.sums.hits)
        self.seconds = 0.0

    def parts(self) -> dict[str, float]:
        """Mean milliseconds of each part of a step as the trainer's timers sees it; on the CPU also of the rest."""
        self.trainer._fetch()
        sums = self.trainer.sums
        found = {part: ms / sums.steps for part, ms in sums.parts_ms.items() if ms}
        if DEVICE == "cpu":
            found["other"] = 1e3 * self.seconds / sums.steps - sum(found.values())
            overhead = (found["data"] + found["other"]) / sum(found.values())
            assert overhead < MOST_OVERHEAD, f"{overhead:.1%} of a step is neither network nor criterion nor optimiser"
        return found


def check_parameters(loop: Loop, kind: str, steps: TrainerSteps) -> None:
    """The same bits; inside a graph the learning rate is a tensor, which rounds otherwise."""
    for a, b in zip(loop.parameters, steps.parameters, strict=True):
        if kind == "graph":
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(a, b), "the trainer's parameters are not the loop's"


@pytest.fixture
def contenders(
    shape: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Loop | TrainerSteps]:
    """Bare loop and trainers, all from the same parameters."""
    kinds = ["trainer", "graph"] if DEVICE == "cuda" else ["trainer"]
    runs = {
        kind: make_setup(make_config(shape, dtype, kind == "graph"), shape, monkeypatch) for kind in ("loop", *kinds)
    }
    return {"loop": Loop(runs["loop"]), **{kind: TrainerSteps(runs[kind], tmp_path / kind) for kind in kinds}}


def test_training(
    shape: str, dtype: str, contenders: dict[str, Loop | TrainerSteps], benchmark: Any, rows: list[Row]
) -> None:
    loop = contenders["loop"]
    # the loop is handed what the trainer has to get for itself
    batches = epochs(loop.run)
    timed = {kind: Contender(kind, steps) for kind, steps in contenders.items()}
    timed["loop"].prepare = lambda _: next(batches)
    trainers = {kind: steps for kind, steps in contenders.items() if isinstance(steps, TrainerSteps)}
    for contender in timed.values():
        contender.run(contender.prepare(None))
    for steps in trainers.values():
        steps.begin()
    interleave([*timed.values()], [None], ROUNDS, DEVICE, benchmark, budget_s=BUDGET_S)
    for kind, steps in trainers.items():
        check_parameters(loop, kind, steps)
    parts = {kind: steps.parts() for kind, steps in trainers.items()}
    for kind, contender in timed.items():
        row = make_row(shape, dtype, timed["loop"], contender, loop.run.config.recipe.batch_size)
        rows.append(row)
        for part, ms in parts.get(kind, {}).items():
            rows.append(replace(row, direction=part, p20_ms=ms, p50_ms=ms, p80_ms=ms, over_same=0.0, peak_mbytes=0.0))


def epochs(run: setup.Setup) -> Iterator[Batch]:
    """The loop's batches, in the trainer's order and memory format."""
    while True:
        for batch in run.data.train_batches(0):
            yield batch._replace(images=run.images(batch.images))


def make_row(shape: str, dtype: str, loop: Contender, contender: Contender, batch_size: int) -> Row:
    return Row(
        op="training",
        backend=contender.name,
        direction="step",
        dtype=dtype,
        shape=shape,
        batch=batch_size,
        **contender.quantiles(),
        peak_mbytes=peak_bytes(lambda: contender.run(contender.prepare(None)), DEVICE, warm_up=False) / 1e6,
        layout="channels_last",
        over_same=contender.speedup_over(loop),
        **machine(DEVICE),
    )
