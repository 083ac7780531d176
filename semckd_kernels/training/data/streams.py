"""Batches that somebody else's loader makes: torch DataLoaders, and whatever else has a length and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..errors import first_line
from .base import Batch, DataSet, Normaliser
from .broken import DataError
from .decoding import Pixels
from .loader import end_workers, on_device
from .options import Options
from .random_state import Chance
from .sampling import derived_seed

# whose order is a function of a seed and an epoch
SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class Loaders(NamedTuple):
    """This process's training and test batches, each ``(images, labels)``; both have a length."""

    train: Any
    test: Any


class Streamed(DataSet):
    """Batches of loaders, in the loaders' own order and normalisation.

    Before an epoch every generator that a loader may draw from begins with a seed of the run's seed, the epoch and the
    process, and ``set_epoch`` is called where it exists. What is skipped by ``start_step`` is read and thrown away.

    Args:
        name, class_names: see :class:`.DataSet`.
        loaders: of this process.
        shape: of the images, ``(C, H, W)``.
        counts: training and test samples over all processes.
        normaliser: of their batches, to be undone for looking at.
        options: batch size, seed, process and device.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        loaders: Loaders,
        shape: tuple[int, int, int],
        counts: tuple[int, int],
        normaliser: Normaliser,
        options: Options,
    ) -> None:
        super().__init__(name, class_names, shape, counts, options.share, normaliser, options.device)
        self.loaders = loaders
        if not repeats(loaders.train):
            self.notes = (
                f"the order of the training batches of '{name}' is their loader's own: a resumed run may see others "
                "than the run that never stopped, and is not the same bit for bit",
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.loaders.train)

    @property
    def last_batch(self) -> int | None:
        loader, size = self.loaders.train, self.share.batch_size
        sampler: Any = getattr(loader, "sampler", None)
        if type(getattr(loader, "batch_sampler", None)) is not BatchSampler or not hasattr(sampler, "__len__"):
            return None
        return size if loader.drop_last else len(sampler) % size or size

    def test_batches(self) -> Iterator[Batch]:
        return on_device(self._pixels(self.loaders.test, 0, "test"), self.normaliser, self.device)

    def _train_from(self, epoch: int, start_step: int) -> Iterator[Batch]:
        return on_device(self._train_pixels(epoch, start_step), self.normaliser, self.device)

    def close(self) -> None:
        for loader in self.loaders:
            end_workers(loader)

    def _train_pixels(self, epoch: int, start_step: int) -> Iterator[Pixels]:
        done = start_step
        for pixels in islice(self._pixels(self.loaders.train, epoch, "train"), start_step, self.steps_per_epoch):
            yield pixels
            done += 1
        if done < self.steps_per_epoch:
            raise DataError(
                f"the training loader of '{self.name}' ended before its {self.steps_per_epoch} batches, after {done}"
            )

    def _test_images(self, index: Tensor) -> Batch:
        wanted = index.tolist()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        first = 0
        for images, labels in self._pixels(self.loaders.test, 0, "test"):
            here = {i: (images[i - first], labels[i - first]) for i in wanted if first <= i < first + len(labels)}
            found |= here
            first += len(labels)
            if len(found) == len(set(wanted)):
                break
        if missing := [i for i in wanted if i not in found]:
            raise DataError(f"the test loader of '{self.name}' has no image {missing[0]}, it ended after {first}")
        images, labels = (torch.stack(parts) for parts in zip(*(found[i] for i in wanted), strict=True))
        return Batch(self.normaliser(images.to(self.device)), labels.to(self.device))

    def _pixels(self, loader: Any, epoch: int, what: str) -> Iterator[Pixels]:
        seed = derived_seed(self.share.seed, "loader", what, epoch, self.share.rank)
        for batch in batches(loader, seed, epoch, f"the {what} loader of '{self.name}'"):
            pixels = as_pixels(batch, f"the {what} loader of '{self.name}'")
            channels, height, width = self.in_channels, *self.image_size
            if pixels.images.shape[1:] != (channels, height, width):
                raise DataError(
                    f"the {what} loader of '{self.name}' must give images of {[channels, height, width]} as in its "
                    f"first batch, got {list(pixels.images.shape[1:])}"
                )
            low, high = torch.aminmax(pixels.labels)
            if low < 0 or high >= self.classes:
                wrong = int(low if low < 0 else high)
                raise DataError(
                    f"the {what} loader of '{self.name}' must give labels from 0 to {self.classes - 1}, got {wrong}"
                )
            yield pixels


def check_options(name: str, options: Options) -> None:
    """Raises ValueError where something is asked for that needs samples by number."""
    asked = {
        "train_fraction": options.draw.fraction != 1,
        "label_noise": options.draw.noise > 0,
        "skip_broken": options.skip_broken,
    }
    if wrong := [argument for argument, given in asked.items() if given]:
        raise ValueError(
            f"{wrong[0]} needs samples by number, and '{name}' gives batches: leave it out, or use Datasets"
        )


def repeats(loader: Any) -> bool:
    """Whether batches are known to be a function of the seed, the epoch and the step."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        # workers that stay keep the state of their generators
        and not loader.persistent_workers
        and type(loader.batch_sampler) is BatchSampler
        and isinstance(loader.sampler, SAMPLERS)
    )


def batches(loader: Any, seed: int, epoch: int, what: str) -> Iterator[Any]:
    """One pass over a loader, whose random choices follow from ``seed`` and leave the process's generators alone.

    Raises:
        DataError: it fails, in whatever way.
    """
    parts = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    for part in parts:
        if isinstance(random := getattr(part, "generator", None), torch.Generator):
            random.manual_seed(seed)
        if callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(epoch)
    chance = Chance(seed)

    def within(action: Callable[[], Any]) -> Any:
        try:
            with chance.used():
                return action()
        except StopIteration:
            raise
        # a user's data set or sampler may fail in any way
        except Exception as error:
            raise DataError(f"{what} has failed: {type(error).__name__}: {first_line(error)}") from error

    iterator = within(lambda: iter(loader))
    while True:
        try:
            batch = within(lambda: next(iterator))
        except StopIteration:
            return
        yield batch


def as_pixels(batch: Any, what: str) -> Pixels:
    """A loader's batch.

    Raises:
        DataError: it is not images and labels.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(torch.is_tensor(x) for x in batch)):
        found = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else "")
        raise DataError(f"{what} must give pairs of tensors, images and labels, got {found}")
    images, labels = batch
    if images.dim() != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise DataError(f"{what} must give images [B, C, H, W] of floats or uint8, got {_shown(images)}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex() or not len(labels):
        raise DataError(f"{what} must give one whole number an image as labels, got {_shown(labels)}")
    return Pixels(images, labels.to(torch.int64))


def first_batch(loader: Iterable[Any], what: str) -> Pixels:
    """The first batch of a loader, with which nothing of its later ones changes; raises DataError as others do."""
    for batch in batches(loader, 0, 0, what):
        return as_pixels(batch, what)
    raise DataError(f"{what} is empty")


def _shown(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
