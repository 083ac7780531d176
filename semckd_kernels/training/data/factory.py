"""Data of a user's own, ``package.module:factory``: how the factory is called, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset

from .. import named_code
from ..errors import first_line, typed_line
from .base import DataSet
from .broken import Broken, BrokenImages, DataError, describe
from .decoding import Decoder, Item, Transform
from .folders import check_same_classes
from .indexed import Indexed, Pair, image_size, image_transforms, pixel_normaliser
from .loader import leave_signals
from .options import Options
from .random_state import lent
from .sampling import Share
from .streams import Loaders, Streamed, check_options, first_batch
from .torch_sets import Samples, class_names_of, is_loader, is_map, labels_of

WANTED = "two Datasets with a length or two DataLoaders, for training and for testing, and may add the classes"


def load(name: str, options: Options) -> DataSet:
    """What a factory returns, as a data set.

    The factory is called with those of the keyword arguments ``root``, ``batch_size``, ``image_size``, ``seed``,
    ``augment``, ``workers``, ``download``, ``rank`` and ``world_size`` that it takes; ``root`` and ``image_size`` only
    where they are given. It returns ``(train, test)`` or ``(train, test, classes)``:

    * two Datasets: a length, and samples by number, ``(image, label)``. An image is a PIL image (cropped, mirrored and
      scaled to ``image_size`` here), a uint8 tensor ``[C, H, W]`` (normalised here), or a tensor of floats (taken as it
      is). Order, workers, processes and resuming are ours, and the random choices of torch's, Python's and numpy's
      generators follow from seed, epoch and sample.
    * two DataLoaders, or other iterables with a length, of batches ``(images [B, C, H, W], labels [B])``: this
      process's share of them. Order and augmentation are theirs.

    ``classes`` are names, or their number. Without them the training set's ``classes`` count, or else its ``targets``.

    Raises:
        ValueError: the factory does not exist, cannot be called or fails; or what it returns does not fit.
    """
    factory = named_code.load(name)
    given = _arguments(name, factory, options)
    try:
        made = factory(**given)
    # a user's code may fail in any way
    except Exception as error:
        raise ValueError(f"data factory '{name}' has failed: {typed_line(error)}") from error
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 3):
        size = f" of {len(made)}" if isinstance(made, (tuple, list)) else ""
        raise ValueError(f"data factory '{name}' must return {WANTED}, got a {type(made).__name__}{size}")
    train, test, classes = (*made, None)[:3]
    if any(isinstance(part, IterableDataset) for part in (train, test)):
        # which has no number of samples
        raise ValueError(f"data factory '{name}' must return {WANTED}: an IterableDataset needs a DataLoader around it")
    if is_map(train) and is_map(test):
        return _indexed(name, train, test, classes, options, "augment" in given)
    if is_loader(train) and is_loader(test):
        return _streamed(name, Loaders(train, test), classes, options, given)
    kinds = " and ".join(f"a {type(part).__name__}" for part in (train, test))
    raise ValueError(f"data factory '{name}' must return {WANTED}, got {kinds}")


def _arguments(name: str, factory: Callable[..., Any], options: Options) -> dict[str, Any]:
    """What the factory is called with."""
    share = options.share
    known = {
        "root": None if options.root is None else str(options.root),
        "batch_size": share.batch_size,
        "image_size": options.image_size,
        "seed": share.seed,
        "augment": options.augment,
        "workers": options.workers,
        "download": options.download,
        "rank": share.rank,
        "world_size": share.world_size,
    }
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"data factory '{name}' must say which arguments it takes: {typed_line(error)}") from error
    takes = {part.name for part in parameters if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)}
    anything = any(part.kind is part.VAR_KEYWORD for part in parameters)
    given = {key: value for key, value in known.items() if value is not None and (anything or key in takes)}
    for part in parameters:
        if part.default is not part.empty or part.kind in (part.VAR_KEYWORD, part.VAR_POSITIONAL) or part.name in given:
            continue
        if part.name in known and part.kind is not part.POSITIONAL_ONLY:
            # the two that may be None
            flag = {"root": "--data-root DIR", "image_size": "--image-size INT"}[part.name]
            raise ValueError(f"data factory '{name}' needs an argument '{part.name}': give {flag}")
        names = ", ".join(map(repr, known))
        raise ValueError(f"data factory '{name}' needs an argument '{part.name}', and can be given {names}")
    for key in ("root", "download"):
        if known[key] and key not in given:
            raise ValueError(f"data factory '{name}' takes no argument '{key}', which has no effect then: leave it out")
    return given


def _indexed(name: str, train: Any, test: Any, classes: Any, options: Options, augments: bool) -> Indexed:
    for part, what in ((train, "training"), (test, "test")):
        if not len(part):
            raise ValueError(f"the {what} set of '{name}' is empty")
    sources = Samples(train, f"the training set of '{name}'"), Samples(test, f"the test set of '{name}'")
    names = _names(name, (train, test), classes)
    transforms = image_transforms(image_size(options), options.augment)
    looks = [_look(*pair, options.skip_broken) for pair in zip(sources, transforms, strict=True)]
    kinds = {f"{str(look.pixels.dtype).removeprefix('torch.')} {list(look.pixels.shape)}": None for look in looks}
    if len(kinds) > 1:
        raise ValueError(f"images of '{name}' must be of one size and type, got {' to train and '.join(kinds)} to test")
    if not (options.augment or augments or looks[0].is_image):
        raise _no_augmentation(name)
    shape = _shape(name, looks[0].pixels, options)
    made = Indexed(name, names, Pair(*sources), transforms, shape, options, looks[0].pixels.dtype)
    made.notes = tuple(
        f"images of {source.what} are not the same when they are read again with the same seeds: a resumed run is not "
        "the same bit for bit"
        for source, look in zip(sources, looks, strict=True)
        if not look.repeats
    )
    return made


class _Look(NamedTuple):
    """A first sample, as it is decoded."""

    pixels: Tensor
    is_image: bool
    repeats: bool


def _look(source: Samples, transform: Transform, skip_broken: bool) -> _Look:
    """The first sample that can be decoded, of those that may be skipped.

    Raises:
        DataError: there is none.
    """
    decoder, found = Decoder(source, transform), BrokenImages(skip_broken)
    for index in range(len(source)):
        with lent():
            sample, again = (decoder[Item(index, 0)] for _ in range(2))
            if isinstance(sample, Broken):
                found.add([sample])
                continue
            image, _ = source.read(index)
        same = not isinstance(again, Broken) and torch.equal(sample[0], again[0])
        return _Look(sample[0], not torch.is_tensor(image), same)
    raise DataError(describe(found.reasons))


def _streamed(name: str, loaders: Loaders, classes: Any, options: Options, given: dict[str, Any]) -> Streamed:
    share = options.share
    check_options(name, options)
    if not (options.augment or "augment" in given):
        raise _no_augmentation(name)
    divided = "rank" in given or all(isinstance(getattr(x, "sampler", None), DistributedSampler) for x in loaders)
    if share.world_size > 1 and not divided:
        raise ValueError(
            f"data factory '{name}' gives each of {share.world_size} processes the same DataLoaders: let it take "
            "'rank' and 'world_size' and return a process's share, or return Datasets"
        )
    for loader, what in zip(loaders, ("training", "test"), strict=True):
        if not _length(loader, f"the {what} loader of '{name}'"):
            raise ValueError(f"the {what} loader of '{name}' is empty")
        leave_signals(loader)
    size = getattr(loaders.train, "batch_size", None)
    first = first_batch(loaders.train, f"the training loader of '{name}'")
    if share.batch_size != (found := size if isinstance(size, int) else len(first.labels)):
        raise ValueError(
            f"batch_size is {share.batch_size}, but the training loader of '{name}' gives batches of {found}: let the "
            f"factory take 'batch_size', or give --batch-size {found}"
        )
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    counts = [_count(loader, share) for loader in loaders]
    normaliser = pixel_normaliser(first.images.shape[1], first.images.dtype, options.device)
    names = _names(name, sets, classes)
    made = Streamed(
        name, names, loaders, _shape(name, first.images[0], options), (counts[0], counts[1]), normaliser, options
    )
    if options.workers and "workers" not in given:
        made.notes += (f"--workers has no effect with the DataLoaders of '{name}', which have their own",)
    return made


def _length(loader: Any, what: str) -> int:
    try:
        return len(loader)
    except TypeError as error:
        raise ValueError(f"{what} must have a length, an IterableDataset one as well: {first_line(error)}") from error


def _count(loader: Any, share: Share) -> int:
    """Samples of a loader over all processes; where it does not say, those of full batches."""
    sampler: Any = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return len(sampler.dataset)  # type: ignore[arg-type]
    parts: tuple[Any, ...] = (sampler, getattr(loader, "dataset", None))
    for part in parts:
        if hasattr(part, "__len__"):
            return share.world_size * len(part)
    return share.world_size * share.batch_size * len(loader)


def _names(name: str, sets: Sequence[Any], given: Any) -> list[str]:
    """The names of the classes, by what the factory returns, or by the training set's ``classes`` or ``targets``."""
    own = [class_names_of(part) for part in sets]
    if own[0] is not None and own[1] is not None:
        check_same_classes(own[0], own[1], f"'{name}'", ("train", "test"))
    if given is not None:
        names = [str(n) for n in range(given)] if isinstance(given, int) else given
        if isinstance(names, (list, tuple)) and len(names) > 1:
            return [str(text) for text in names]
        raise ValueError(
            f"data factory '{name}' must return as classes two or more names, or their number, got {given!r}"
        )
    if own[0] is not None:
        return own[0]
    labels = labels_of(sets[0])
    if labels is None:
        raise ValueError(
            f"the classes of '{name}' are not known: return (train, test, classes), with their names or their number, "
            "or give the training set an attribute 'classes' or 'targets'"
        )
    return [str(n) for n in range(int(labels.max()) + 1)]


def _shape(name: str, image: Tensor, options: Options) -> tuple[int, int, int]:
    channels, height, width = image.shape
    if options.image_size not in (None, height) or options.image_size not in (None, width):
        raise ValueError(
            f"image_size is {options.image_size}, but images of '{name}' are {height} x {width}: leave it out, or let "
            "the factory take 'image_size'"
        )
    return channels, height, width


def _no_augmentation(name: str) -> ValueError:
    return ValueError(
        f"data factory '{name}' takes no argument 'augment', and what it returns is not augmented here: leave it out"
    )
