"""Samples that are read by number, in worker processes: image folders, a user's data sets, timm's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .base import AsGiven, Batch, Normaliser, Ordered
from .broken import DataError, describe
from .decoding import Decoder, Form, Item, Transform, collate, test_transform, train_transform
from .loader import Loader, on_device
from .options import Options
from .random_state import lent
from .sampling import derived_seed
from .sources import Drawn, Source, check_labels

# of ImageNet's training images, as torchvision's and timm's models expect them
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224
# BatchNorm needs several
LEAST_TO_TRAIN = 2


class Pair(NamedTuple):
    """Training and test samples."""

    train: Source
    test: Source


class Indexed(Ordered):
    """Samples that worker processes read, and augment where they are images, and the device normalises.

    Pixels (PIL images, and tensors of uint8) are normalised by ImageNet's mean and deviation, with other channels than
    three by the means of these; tensors of floats are taken as they are.

    Args:
        name, class_names: see :class:`.DataSet`.
        sources: the samples, before anything is drawn from them.
        transforms: of PIL images: for training, and for testing.
        shape: of the images, ``(C, H, W)``.
        options: the rest.
        dtype: of the images: uint8, or fp32.

    Raises:
        ValueError: a label is of no class; or labels are to be drawn, and not known.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        sources: Pair,
        transforms: tuple[Transform, Transform],
        shape: tuple[int, int, int],
        options: Options,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        train, test = sources
        check_labels(train.labels, len(class_names), f"the training samples of '{name}'")
        check_labels(test.labels, len(class_names), f"the test samples of '{name}'")
        if not options.draw.is_everything:
            train = Drawn(train, options.draw, len(class_names))
        counts = (len(train), len(test))
        normaliser = pixel_normaliser(shape[0], dtype, options.device)
        super().__init__(name, class_names, shape, counts, options.share, normaliser, options.device)
        form, pin = Form(shape, dtype, len(class_names)), options.device.type == "cuda"
        self.train_decoder = Decoder(train, transforms[0], form)
        self.test_decoder = Decoder(test, transforms[1], form)
        self.broken.skip = options.skip_broken
        self.train_loader = Loader(self.train_decoder, options.workers, pin, self.broken, LEAST_TO_TRAIN)
        self.test_loader = Loader(self.test_decoder, options.workers, pin, self.broken, 1)

    def _train_batches(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        plan = self._plan(order, epoch)
        return on_device(self.train_loader.batches(plan), self.normaliser, self.device)

    def _test_batches(self, order: Tensor) -> Iterator[Batch]:
        return on_device(self.test_loader.batches(self._plan(order, 0)), self.normaliser, self.device)

    def _test_images(self, index: Tensor) -> Batch:
        # with the seeds of test_batches
        items = [self._item(i, 0) for i in index.tolist()]
        with lent():
            pixels, broken = collate([self.test_decoder[item] for item in items])
        if pixels is None or broken:
            # whoever asks for an image wants that one
            raise DataError(describe({found.path: found.reason for found in broken}))
        return Batch(self.normaliser(pixels.images.to(self.device)), pixels.labels.to(self.device))

    def close(self) -> None:
        for loader in (self.train_loader, self.test_loader):
            loader.close()

    def _plan(self, order: Tensor, epoch: int) -> Iterator[list[Item]]:
        for index in self.share.batches(order):
            yield [self._item(i, epoch) for i in index.tolist()]

    def _item(self, sample: int, epoch: int) -> Item:
        return Item(sample, derived_seed(self.share.seed, "augment", epoch, sample))


def image_size(options: Options) -> int:
    """The side that images are scaled to.

    Raises:
        ValueError: it is not above 0.
    """
    size = SIZE if options.image_size is None else options.image_size
    if size < 1:
        raise ValueError(f"image_size must be at least 1, got {size}")
    return size


def image_transforms(size: int, augment: bool) -> tuple[Transform, Transform]:
    """Of PIL images, for training and for testing."""
    return (train_transform if augment else test_transform)(size), test_transform(size)


def pixel_normaliser(channels: int, dtype: torch.dtype, device: torch.device) -> Normaliser:
    """Of images of a type, floats being normalised already."""
    if dtype != torch.uint8:
        return AsGiven(device)
    if channels == len(MEAN):
        return Normaliser(MEAN, STD, 255.0, device)
    mean, std = (sum(values) / len(values) for values in (MEAN, STD))
    return Normaliser([mean], [std], 255.0, device)
