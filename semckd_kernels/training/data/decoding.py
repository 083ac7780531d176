"""What worker processes do: files to pixels of one size, with the random choices they are told to make."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..errors import first_line
from .broken import Broken
from .folders import Files

Transform = Callable[[Image.Image], Tensor]
# the share of the shorter side that ImageNet's centre crop leaves
CENTRE_SHARE = 224 / 256


class Item(NamedTuple):
    """A sample to decode; ``seed`` is that of its random choices."""

    sample: int
    seed: int


class Pixels(NamedTuple):
    """A decoded batch."""

    images: Tensor  # [B, 3, H, W], uint8
    labels: Tensor  # [B], int64


def train_transform(size: int) -> Transform:
    """A random part of the image, of random shape, resized to ``size``, and mirrored at random."""
    crop, mirror = v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()
    transform: Transform = v2.Compose([crop, mirror, v2.PILToTensor()])
    return transform


def test_transform(size: int) -> Transform:
    """The centre of the image, after the shorter side has been resized to 8/7 of ``size``."""
    resize, crop = v2.Resize(round(size / CENTRE_SHARE), antialias=True), v2.CenterCrop(size)
    transform: Transform = v2.Compose([resize, crop, v2.PILToTensor()])
    return transform


class Decoder(Dataset[tuple[Tensor, int] | Broken]):
    """Images by :class:`Item`, as uint8 ``[3, size, size]`` with their label; grey ones as RGB."""

    def __init__(self, files: Files, transform: Transform) -> None:
        self.files = files
        self.transform = transform

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | Broken:
        path = self.files.path(item.sample)
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except Exception as error:
            # Pillow's decoders raise half a dozen types; whatever it is, the file is what the user needs to know
            return Broken(str(path), first_line(error))
        # transforms draw from torch's own generator, which belongs to the training where there are no workers
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(item.seed)
            return self.transform(rgb), int(self.files.labels[item.sample])


def collate(samples: Sequence[tuple[Tensor, int] | Broken]) -> tuple[Pixels | None, list[Broken]]:
    """A batch of the samples that could be decoded, if there are any, and the others."""
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    good = [sample for sample in samples if not isinstance(sample, Broken)]
    if not good:
        return None, broken
    images, labels = zip(*good, strict=True)
    return Pixels(torch.stack(images), torch.tensor(labels)), broken


def leave_signals_to_the_parent(leaving: Event, _: int) -> None:
    """Keeps a worker running where Ctrl-C or a scheduler's SIGTERM reaches the whole process group.

    The parent may need another batch, and wants to save: a worker that a signal kills makes torch raise an exception in
    the parent, in the middle of whatever it does. Once ``leaving`` is set, SIGTERM is the parent's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if leaving.is_set() else None)
