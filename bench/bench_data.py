"""CIFAR batches against those of the usual DataLoader, which crops, mirrors and converts one Pillow image at a time.

    pytest bench/bench_data.py

Images are random, of CIFAR-100's number and size: what they show makes no difference to either. Every contender
delivers normalised batches on the device. Work of the loader's processes goes on between two batches, so a turn is a
whole pass with nothing left under way at its end: ours over the training set, the loader's over a tenth of it. Workers
stay from one pass to the next, and have made one before the timers starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler
from torchvision import transforms

from semckd_kernels.training.data import Batch, InMemory, Share, Split, cifar
from semckd_kernels.training.data.sampling import generator

from .harness import Contender, interleave, machine
from .results import Row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUICK = FULL = [("cifar100", "fp32")]
BATCH, COUNT, LOADER_COUNT = 64, 50_000, 5_000
WORKERS = (0, 2)
ROUNDS, BUDGET_S = 20, 60.0
CHECKED_STEPS = 3


class PillowImages(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR100 is in memory, with the transforms of the distillation papers."""

    def __init__(self, train: Split) -> None:
        self.pixels = train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(cifar.SIDE, padding=cifar.PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(cifar.MEAN, cifar.STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def make_split() -> Split:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8))
    return Split(images, torch.arange(COUNT) % cifar.CLASSES)


def make_ours(train: Split) -> InMemory:
    names = [str(n) for n in range(cifar.CLASSES)]
    normalise = {"mean": cifar.MEAN, "std": cifar.STD, "white": 255.0}
    share, test = Share(BATCH, seed=0), Split(train.images[:1], train.labels[:1])
    return InMemory(
        "cifar100", names, train, test, share=share, device=torch.device(DEVICE), pad=cifar.PAD, **normalise
    )


def check(ours: InMemory, train: Split) -> None:
    """The same pixels as Pillow's and torchvision's for the same crops: no row for a wrong result."""
    order, seed = ours.share.train_order(COUNT, epoch=0), ours.share.seed
    crops = ours.train_pixels.draw(COUNT, generator(seed, "augment", 0))
    convert = transforms.Compose([transforms.ToTensor(), transforms.Normalize(cifar.MEAN, cifar.STD)])
    for step, (images, labels) in zip(range(CHECKED_STEPS), ours.train_batches(0), strict=False):
        index = order[step * BATCH : (step + 1) * BATCH]
        assert torch.equal(labels.cpu(), train.labels[index])
        for image, i in zip(images.cpu(), index.tolist(), strict=True):
            padded = F.pad(train.images[i], (cifar.PAD,) * 4).permute(1, 2, 0).numpy()
            top, left, mirrored = (int(choice[i]) for choice in crops)
            crop = Image.fromarray(padded).crop((left, top, left + cifar.SIDE, top + cifar.SIDE))
            expected = convert(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop)
            torch.testing.assert_close(image, expected, rtol=0, atol=2e-6)


def loaded(train: Split, workers: int) -> Callable[[], Iterator[Batch]]:
    """A shuffled tenth of an epoch from the usual loader."""
    loader: DataLoader[Any] = DataLoader(
        PillowImages(train),
        BATCH,
        sampler=SubsetRandomSampler(range(LOADER_COUNT)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE == "cuda",
    )

    def batches() -> Iterator[Batch]:
        for images, labels in loader:
            yield Batch(images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True))

    return batches


def one_pass(batches: Callable[[], Iterator[Batch]]) -> Callable[[Any], None]:
    """Runs through all batches, of which it keeps one, as a training loop does."""

    def run(_: Any) -> None:
        for batch in batches():
            assert len(batch.labels)

    return run


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_data(shape: str, dtype: str, benchmark: Any, rows: list[Row]) -> None:
    train = make_split()
    ours = make_ours(train)
    check(ours, train)
    passes = {f"DataLoader, {workers} workers": (loaded(train, workers), LOADER_COUNT) for workers in WORKERS}
    passes["ours"] = (lambda: ours.train_batches(0), COUNT)
    contenders = {name: Contender(name, one_pass(batches)) for name, (batches, _) in passes.items()}
    for contender in contenders.values():
        contender.run(None)
    interleave([*contenders.values()], [None], ROUNDS, DEVICE, benchmark, budget_s=BUDGET_S)

    for name, (_, count) in passes.items():
        # of a pass to those of a batch: an epoch's own work is shared out over its batches
        contenders[name].seconds = [seconds / (count / BATCH) for seconds in contenders[name].seconds]
    loaders = [contender for name, contender in contenders.items() if name != "ours"]
    fastest = min(loaders, key=lambda contender: contender.quantile_ms(50))
    for name, contender in contenders.items():
        row = Row(
            op="data",
            backend=name,
            direction="batch",
            dtype=dtype,
            shape=shape,
            batch=BATCH,
            **contender.quantiles(),
            # pixels are read as bytes and written as fp32
            mbytes=BATCH * cifar.PIXELS * 5 / 1e6,
            gbytes_s=BATCH * cifar.PIXELS * 5 / 1e6 / contender.quantile_ms(50),
            over_reference=contender.speedup_over(fastest),
            **machine(DEVICE),
        )
        rows.append(row)
