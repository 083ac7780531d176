"""What a data set is to the rest of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .broken import BrokenImages
from .sampling import Share


class Batch(NamedTuple):
    """Samples on the device."""

    images: Tensor  # [B, C, H, W], fp32, normalised
    labels: Tensor  # [B], int64


class Normaliser:
    """Pixels to fp32 of about zero mean and unit variance in each channel, and back.

    Args:
        mean, std: of each channel, of pixels from 0 to 1.
        white: the value of a pixel that counts as 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], white: float, device: torch.device) -> None:
        self.mean, self.std = (torch.tensor(x, dtype=torch.float32, device=device)[:, None, None] for x in (mean, std))
        # one product and one sum a pixel instead of two divisions and a difference
        self.scale = 1.0 / (white * self.std)
        self.shift = -self.mean / self.std

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, C, H, W]`` of any type to normalised fp32, always a copy."""
        return pixels.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images to pixels from 0 to 1."""
        return (images * self.std.to(images.device) + self.mean.to(images.device)).clamp(0.0, 1.0)


class AsGiven(Normaliser):
    """Images that somebody else has normalised: taken as they are.

    Args:
        mean, std: what they were normalised with, where that is known.
    """

    def __init__(
        self, device: torch.device, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__(mean or (0.0,), std or (1.0,), 1.0, device)
        self.known = mean is not None

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32)

    def undo(self, images: Tensor) -> Tensor:
        """Pixels from 0 to 1: each image from its darkest value to its lightest one, where nothing better is known."""
        if self.known:
            return super().undo(images)
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)


class Images(NamedTuple):
    """What a network takes, and how many classes it tells apart.

    Pixels from 0 to 1 become inputs as ``(pixels - mean) / std``, by channel.
    """

    classes: int
    in_channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class DataSet(ABC):
    """Training and test samples of one data set, as one rank sees them.

    Attributes:
        name: as :func:`.build` knows it.
        class_names: one a class, in the order of the labels.
        in_channels, image_size: of the images that batches hold; ``image_size`` is (height, width).
        train_count, test_count: samples over all ranks.
        device: where batches are.
        share: batch size, seed and rank.
        broken: images that could not be decoded, and whether they are skipped.
        notes: sentences to say before training.

    Iterators are to be used one at a time: one training and one test iterator may be under way together.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        images: tuple[int, int, int],
        counts: tuple[int, int],
        share: Share,
        normaliser: Normaliser,
        device: torch.device,
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.in_channels, *_ = images
        self.image_size = images[1:]
        self.train_count, self.test_count = counts
        self.share = share
        self.normaliser = normaliser
        self.device = device
        self.broken = BrokenImages()
        self.notes: tuple[str, ...] = ()
        share.check_fits(self.train_count)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def images(self) -> Images:
        """What a network for this data set takes."""
        mean, std = (tuple(x.flatten().tolist()) for x in (self.normaliser.mean, self.normaliser.std))
        return Images(self.classes, self.in_channels, self.image_size, mean, std)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch, equal on all ranks."""
        return self.share.train_steps(self.train_count)

    @property
    def last_batch(self) -> int | None:
        """Images of this rank's last batch of an epoch; None where nobody knows before it comes."""
        return self.share.train_samples(self.train_count) - (self.steps_per_epoch - 1) * self.share.batch_size

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch from ``start_step`` on; what is skipped costs nothing.

        Every sample comes once an epoch over all ranks, but for the few that make the ranks' shares equal; the last
        batch holds what is left and may be smaller. Order and augmentation follow from the seed, the epoch and the
        sample alone: a run that resumes in mid-epoch sees the same bits, and torch's own generators are left alone.

        Raises:
            ValueError: ``epoch`` is negative or the epoch has no such step.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step must be from 0 to {self.steps_per_epoch}, got {start_step}")
        return self._train_from(epoch, start_step)

    @abstractmethod
    def test_batches(self) -> Iterator[Batch]:
        """This rank's share of the test set, in order: each sample exactly once over all ranks.

        Ranks may have one sample more or less, and so one batch: no collective operation should wait in between.
        """

    def test_images(self, indices: Sequence[int] | Tensor) -> Batch:
        """Chosen test samples, as one batch.

        Raises:
            ValueError: there is no such sample, or none is asked for.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).flatten()
        if not len(index):
            raise ValueError("indices must name at least one sample, got none")
        for i in index.tolist():
            if not 0 <= i < self.test_count:
                raise ValueError(f"indices must be from 0 to {self.test_count - 1}, got {i}")
        return self._test_images(index)

    def close(self) -> None:  # noqa: B027
        """Ends what works for this data set beside this process; the next batches start it again."""

    def denormalise(self, images: Tensor) -> Tensor:
        """Images of a batch as pixels from 0 to 1, for looking at."""
        return self.normaliser.undo(images)

    @abstractmethod
    def _train_from(self, epoch: int, start_step: int) -> Iterator[Batch]: ...

    @abstractmethod
    def _test_images(self, index: Tensor) -> Batch: ...


class Ordered(DataSet):
    """A data set whose samples are had by number, and so in the order that the share gives them."""

    def test_batches(self) -> Iterator[Batch]:
        return self._test_batches(self.share.test_order(self.test_count))

    def _train_from(self, epoch: int, start_step: int) -> Iterator[Batch]:
        order = self.share.train_order(self.train_count, epoch)[start_step * self.share.batch_size :]
        return self._train_batches(order, epoch)

    @abstractmethod
    def _train_batches(self, order: Tensor, epoch: int) -> Iterator[Batch]: ...

    @abstractmethod
    def _test_batches(self, order: Tensor) -> Iterator[Batch]: ...
