"""Data sets: :func:`build` by name, then batches on the device.

================  ==============================================================================
``base``          what a data set is to the rest of the training: :class:`DataSet`, :class:`Batch`
``options``       what every data set is asked for
``sampling``      a rank's share, its order, and the seeds of all random choices
``draw``          fewer training samples, and wrong labels
``memory``        data sets held on the device, augmented in whole batches
``augment``       random crops and mirror images of whole batches
``digits``        scikit-learn's handwritten digits
``cifar``         CIFAR-100 from its official files
``unpickle``      pickles of arrays, from files that nobody vouches for
``indexed``       samples by number, read by worker processes
``sources``       what such samples are
``folders``       image files in one folder a class
``decoding``      what the workers do
``broken``        images that cannot be decoded
``loader``        the workers, and the way from them to the device
``streams``       batches of other people's loaders
``random_state``  the generators that data sets and loaders draw from
``factory``       data of a user's own, by a function
``torch_sets``    what a torch data set tells of its labels
``timm_sets``     timm's data sets
================  ==============================================================================
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from .base import Batch, DataSet, Images
from .broken import DataError
from .draw import Draw
from .memory import InMemory, Split
from .options import Options
from .sampling import Share

__all__ = [
    "IN_MEMORY",
    "Batch",
    "DataError",
    "DataSet",
    "Images",
    "InMemory",
    "Share",
    "Split",
    "build",
    "is_code",
    "names",
]

# what root must be, where a data set needs one
ROOTS = {
    "digits": None,
    "cifar100": "the folder that holds 'cifar-100-python' or 'cifar-100-binary'",
    "imagenet": "the folder that holds 'train' and 'val'",
    "folder": "the folder that holds 'train' and 'val'",
}
# which have no use for workers
IN_MEMORY = ("digits", "cifar100")
TIMM = "timm:"


def names() -> list[str]:
    """The data sets that :func:`build` knows by name; it also takes ``package.module:factory`` and ``timm:NAME``."""
    return list(ROOTS)


def is_code(name: str) -> bool:
    """Whether a name is that of a user's function, ``package.module:factory``."""
    return ":" in name and not name.startswith(TIMM)


def build(
    name: str,
    *,
    root: str | Path | None = None,
    batch_size: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    download: bool = False,
    image_size: int | None = None,
    augment: bool = True,
    skip_broken: bool = False,
    train_fraction: float = 1.0,
    label_noise: float = 0.0,
) -> DataSet:
    """A data set as one rank sees it.

    Args:
        name: one of :func:`names`, of which ``"imagenet"`` and ``"folder"`` are any two folders of images;
            ``package.module:factory``, see :func:`.factory.load`; or ``timm:NAME``, see :func:`.timm_sets.load`.
        root: where its files are; digits need none.
        batch_size: samples a step of this rank; at most the training set over all ranks.
        seed: of order and augmentation.
        rank, world_size: this process among all of them.
        workers: processes that decode images, for training and for testing each; 0 decodes in this one. Sets held in
            memory have no use for them.
        download: fetch CIFAR-100, or a data set of timm's, where it is missing. Of several processes that share a disk,
            one should do so first. Nothing is ever fetched without.
        image_size: side of the images: of image files, 224 unless given; the others have one size only.
        augment: random changes of training images; digits have none.
        skip_broken: leave out images of folders that cannot be decoded, and count them in ``DataSet.broken``; otherwise
            the first one is a :class:`DataError` of the iterator that meets it.
        train_fraction, label_noise: fewer training samples, and wrong labels; see :class:`.draw.Draw`.

    Raises:
        ValueError: an argument, or a file, is not what it should be.
        FileNotFoundError: there are no such files; the message says where it looked, and how to get them.
        ConnectionError: the download does not succeed.

    Example:
        >>> from semckd_kernels.training import data
        >>> digits = data.build("digits", batch_size=64)
        >>> images, labels = next(digits.train_batches(epoch=0))
        >>> images.shape, digits.steps_per_epoch
        (torch.Size([64, 1, 16, 16]), 23)
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    share, draw = Share(batch_size, seed, rank, world_size), Draw(train_fraction, label_noise, seed)
    place = None if root is None else Path(root)
    options = Options(share, draw, torch.device(device), place, workers, download, image_size, augment, skip_broken)
    if name.startswith(TIMM):
        from . import timm_sets

        return timm_sets.load(name, options)
    if is_code(name):
        from . import factory

        return factory.load(name, options)
    return _by_name(name, options)


def _by_name(name: str, options: Options) -> DataSet:
    if name not in ROOTS:
        near = difflib.get_close_matches(name, ROOTS, n=2, cutoff=0.4)
        nearest = f"; the nearest is {' or '.join(repr(x) for x in near)}" if near else ""
        known = f"{', '.join(map(repr, ROOTS))}, 'timm:NAME' or 'package.module:factory'"
        raise ValueError(f"data must be one of {known}, got '{name}'{nearest}")
    if options.download and name != "cifar100":
        raise ValueError(f"download is for 'cifar100' only, got it for '{name}'")
    root, share, device, draw = options.root, options.share, options.device, options.draw
    if name == "digits":
        from . import digits

        _check_size(name, options.image_size, digits.SIDE)
        return digits.load(share, device, draw)
    if root is None:
        raise ValueError(f"root must be {ROOTS[name]}, got None")
    if name == "cifar100":
        from . import cifar

        _check_size(name, options.image_size, cifar.SIDE)
        return cifar.load(root, share, device, draw, download=options.download, augment=options.augment)
    from . import folders

    return folders.load(name, root, options)


def _check_size(name: str, given: int | None, side: int) -> None:
    if given not in (None, side):
        raise ValueError(f"image_size of '{name}' must be {side}, got {given}")
