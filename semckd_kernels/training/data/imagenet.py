"""ImageNet, and whatever else lies in folders like its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import folders
from .base import Batch, DataSet, Normaliser
from .decoding import Broken, Decoder, Item, collate, test_transform, train_transform
from .loader import Loader, on_device
from .sampling import Share, derived_seed

# of ImageNet's training images, as torchvision's and timm's models expect them
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224


class ImageFolders(DataSet):
    """Images that worker processes decode, resize and augment, and the device normalises.

    Args:
        root: holds ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``, of the same classes.
        share: batch size, seed and rank.
        workers: processes that decode, for training and for testing each; 0 decodes in this one.
        size: side of the images.
        augment: random parts of training images (``RandomResizedCrop``), mirrored at random; their centres otherwise.

    Raises:
        FileNotFoundError: a folder is missing, or holds no images.
        ValueError: the classes of the two are not the same.
    """

    def __init__(
        self, root: Path, share: Share, device: torch.device, *, workers: int, size: int = SIZE, augment: bool = True
    ) -> None:
        train, val, classes = folders.read(root)
        counts = (len(train.labels), len(val.labels))
        normaliser = Normaliser(MEAN, STD, 255.0, device)
        super().__init__("imagenet", classes, (3, size, size), counts, share, normaliser, device)
        pin = device.type == "cuda"
        self.test_decoder = Decoder(val, test_transform(size))
        self.train_loader = Loader(Decoder(train, (train_transform if augment else test_transform)(size)), workers, pin)
        self.test_loader = Loader(self.test_decoder, workers, pin)

    def _train_batches(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        plan = self._plan(order, epoch)
        return on_device(self.train_loader.batches(plan), self.normaliser, self.device)

    def _test_batches(self, order: Tensor) -> Iterator[Batch]:
        return on_device(self.test_loader.batches(self._plan(order, 0)), self.normaliser, self.device)

    def _test_images(self, index: Tensor) -> Batch:
        pixels = collate([self.test_decoder[Item(i, 0)] for i in index.tolist()])
        if isinstance(pixels, Broken):
            raise ValueError(pixels.reason)
        return Batch(self.normaliser(pixels.images.to(self.device)), pixels.labels.to(self.device))

    def _plan(self, order: Tensor, epoch: int) -> Iterator[list[Item]]:
        for index in self.share.batches(order):
            yield [Item(i, derived_seed(self.share.seed, "augment", epoch, i)) for i in index.tolist()]
