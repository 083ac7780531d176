"""ImageNet, and whatever else lies in folders like its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import folders
from .base import Batch, DataSet, Normaliser
from .broken import DataError, describe
from .decoding import Decoder, Item, collate, test_transform, train_transform
from .draw import EVERYTHING, Draw
from .loader import Loader, on_device
from .sampling import Share, derived_seed

# of ImageNet's training images, as torchvision's and timm's models expect them
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224
# BatchNorm needs several
LEAST_TO_TRAIN = 2


class ImageFolders(DataSet):
    """Images that worker processes decode, resize and augment, and the device normalises.

    Args:
        root: holds ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``, of the same classes.
        share: batch size, seed and rank.
        draw: which training images stay, with which labels.
        workers: processes that decode, for training and for testing each; 0 decodes in this one.
        size: side of the images.
        skip_broken: leave out images that cannot be decoded; the first one is an error otherwise.
        augment: random parts of training images (``RandomResizedCrop``), mirrored at random; their centres otherwise.

    Raises:
        FileNotFoundError: a folder is missing, or holds no images.
        ValueError: the classes of the two are not the same.
    """

    def __init__(
        self,
        root: Path,
        share: Share,
        device: torch.device,
        draw: Draw = EVERYTHING,
        *,
        workers: int,
        size: int = SIZE,
        augment: bool = True,
        skip_broken: bool = False,
    ) -> None:
        train, val, classes = folders.read(root)
        train = train.drawn(draw, len(classes))
        counts = (len(train.labels), len(val.labels))
        normaliser = Normaliser(MEAN, STD, 255.0, device)
        super().__init__("imagenet", classes, (3, size, size), counts, share, normaliser, device)
        pin = device.type == "cuda"
        self.test_decoder = Decoder(val, test_transform(size))
        train_decoder = Decoder(train, (train_transform if augment else test_transform)(size))
        self.broken.skip = skip_broken
        self.train_loader = Loader(train_decoder, workers, pin, self.broken, LEAST_TO_TRAIN)
        self.test_loader = Loader(self.test_decoder, workers, pin, self.broken, 1)

    def _train_batches(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        plan = self._plan(order, epoch)
        return on_device(self.train_loader.batches(plan), self.normaliser, self.device)

    def _test_batches(self, order: Tensor) -> Iterator[Batch]:
        return on_device(self.test_loader.batches(self._plan(order, 0)), self.normaliser, self.device)

    def _test_images(self, index: Tensor) -> Batch:
        pixels, broken = collate([self.test_decoder[Item(i, 0)] for i in index.tolist()])
        if pixels is None or broken:
            # whoever asks for an image wants that one
            raise DataError(describe({found.path: found.reason for found in broken}))
        return Batch(self.normaliser(pixels.images.to(self.device)), pixels.labels.to(self.device))

    def _plan(self, order: Tensor, epoch: int) -> Iterator[list[Item]]:
        for index in self.share.batches(order):
            yield [Item(i, derived_seed(self.share.seed, "augment", epoch, i)) for i in index.tolist()]
