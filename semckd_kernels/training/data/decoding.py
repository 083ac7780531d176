"""What worker processes do: samples to pixels of one size, with the random choices they are told to make."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..errors import first_line
from .broken import Broken
from .random_state import begin
from .sources import Source

Transform = Callable[[Image.Image], Tensor]
# the share of the shorter side that ImageNet's centre crop leaves
CENTRE_SHARE = 224 / 256


class Item(NamedTuple):
    """A sample to decode; ``seed`` is that of its random choices."""

    sample: int
    seed: int


class Pixels(NamedTuple):
    """A decoded batch."""

    images: Tensor  # [B, C, H, W], uint8 or fp32
    labels: Tensor  # [B], int64


class Form(NamedTuple):
    """What all samples of a data set have in common."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    classes: int


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
    """Samples by :class:`Item`: PIL images as uint8 ``[3, size, size]``, grey ones as RGB; tensors as they are.

    Each begins the process's own generators with its seed, which belong to the training where there are no workers: see
    :func:`.random_state.lent`.

    Args:
        source: of the samples.
        transform: of PIL images.
        form: what all samples must be; None takes any.
    """

    def __init__(self, source: Source, transform: Transform, form: Form | None = None) -> None:
        self.source, self.transform, self.form = source, transform, form

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | Broken:
        begin(item.seed)
        try:
            image, label = self.source.read(item.sample)
        except Exception as error:
            # Pillow's decoders raise half a dozen types; whatever it is, the file is what the user needs to know
            return self._broken(item, f"cannot be decoded: {first_line(error)}")
        if isinstance(image, Image.Image):
            image = self.transform(image.convert("RGB"))
        if problem := _misfit(image, label, self.form):
            return self._broken(item, problem)
        return image if image.dtype == torch.uint8 else image.to(torch.float32), int(label)

    def _broken(self, item: Item, reason: str) -> Broken:
        return Broken(self.source.where(item.sample), reason)


def _misfit(image: Any, label: Any, form: Form | None) -> str | None:
    """In what a sample is not what it must be: the end of a sentence."""
    if not (torch.is_tensor(image) and image.dim() == 3 and (image.dtype == torch.uint8 or image.is_floating_point())):
        found = f"{image.dtype} {list(image.shape)}" if torch.is_tensor(image) else type(image).__name__
        return f"must be a PIL image, or a tensor [C, H, W] of floats or uint8, got {found}"
    try:
        number = label.__index__()
    except (AttributeError, TypeError):
        return f"must have a whole number for a label, got {label!r}"
    if form is None:
        return None
    dtype = torch.uint8 if image.dtype == torch.uint8 else torch.float32
    if (image.shape, dtype) != (form.shape, form.dtype):
        return f"must be {form.dtype} {list(form.shape)} as the first one, got {dtype} {list(image.shape)}"
    if not 0 <= number < form.classes:
        return f"must have a label from 0 to {form.classes - 1}, got {number}"
    return None


def collate(samples: Sequence[tuple[Tensor, int] | Broken]) -> tuple[Pixels | None, list[Broken]]:
    """A batch of the samples that could be decoded, if there are any, and the others."""
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    good = [sample for sample in samples if not isinstance(sample, Broken)]
    if not good:
        return None, broken
    images, labels = zip(*good, strict=True)
    return Pixels(torch.stack(images), torch.tensor(labels)), broken


def leave_signals_to_the_parent(leaving: Event) -> None:
    """Keeps a worker running where Ctrl-C or a scheduler's SIGTERM reaches the whole process group.

    The parent may need another batch, and wants to save: a worker that a signal kills makes torch raise an exception in
    the parent, in the middle of whatever it does. Once ``leaving`` is set, SIGTERM is the parent's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if leaving.is_set() else None)
