"""Data sets held in memory, on the device that uses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import PaddedImages
from .base import Batch, Normaliser, Ordered
from .draw import EVERYTHING, Draw
from .sampling import Share, generator


class Split(NamedTuple):
    """Pixels ``[N, C, H, W]`` of any type, and labels ``[N]``."""

    images: Tensor
    labels: Tensor


class InMemory(Ordered):
    """Samples that are moved to the device once, as pixels, and made into batches there.

    Args:
        name, class_names: see :class:`.DataSet`.
        train, test: the samples.
        mean, std, white: see :class:`.Normaliser`.
        share: batch size, seed and rank.
        draw: which training samples stay, with which labels.
        pad: random crops of the training images, with this many zeros on each side, and random mirror images; None
            leaves training images as they are.

    Memory is that of the pixels and of their padding: 194 + 31 MB for CIFAR-100. An epoch's order and crops are drawn
    and moved to the device at its beginning; a step then needs nothing from the host.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        train: Split,
        test: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        white: float,
        share: Share,
        device: torch.device,
        draw: Draw = EVERYTHING,
        pad: int | None = None,
    ) -> None:
        channels, height, width = train.images.shape[1:]
        if not draw.is_everything:
            kept = draw.samples(train.labels)
            train = Split(train.images[kept], draw.labels(train.labels[kept], len(class_names)))
        super().__init__(
            name,
            class_names,
            (channels, height, width),
            (len(train.labels), len(test.labels)),
            share,
            Normaliser(mean, std, white, device),
            device,
        )
        self.augments = pad is not None
        self.train_pixels = PaddedImages(train.images.to(device), pad or 0)
        self.test_pixels = test.images.to(device)
        self.train_labels, self.test_labels = (split.labels.to(device) for split in (train, test))

    def _train_batches(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        crops, mirrored = None, None
        if self.augments:
            # of every sample, so that a sample's own do not depend on rank, world size or step
            drawn = self.train_pixels.draw(self.train_count, generator(self.share.seed, "augment", epoch))
            crops = type(drawn)(*(choice[order] for choice in drawn))
            mirrored = crops.mirrored.to(self.device)
        starts = self.train_pixels.starts(order, crops).to(self.device)
        labels = self.train_labels.index_select(0, order.to(self.device))
        for begin in range(0, len(order), self.share.batch_size):
            step = slice(begin, begin + self.share.batch_size)
            pixels = self.train_pixels.cut(starts[step], None if mirrored is None else mirrored[step])
            yield Batch(self.normaliser(pixels), labels[step])

    def _test_batches(self, order: Tensor) -> Iterator[Batch]:
        for index in self.share.batches(order):
            yield self._test_images(index)

    def _test_images(self, index: Tensor) -> Batch:
        index = index.to(self.device)
        return Batch(self.normaliser(self.test_pixels.index_select(0, index)), self.test_labels.index_select(0, index))
