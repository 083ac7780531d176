"""Data sets: :func:`build` by name, then batches on the device.

=============  =================================================================================
``base``       what a data set is to the rest of the training: :class:`DataSet`, :class:`Batch`
``sampling``   a rank's share, its order, and the seeds of all random choices
``draw``       fewer training samples, and wrong labels
``memory``     data sets held on the device, augmented in whole batches
``augment``    random crops and mirror images of whole batches
``digits``     scikit-learn's handwritten digits
``cifar``      CIFAR-100 from its official files
``unpickle``   pickles of arrays, from files that nobody vouches for
``imagenet``   ImageNet-style folders, decoded by worker processes
``folders``    the files in them
``decoding``   what the workers do
``broken``     images that cannot be decoded
``loader``     the workers, and the way from them to the device
=============  =================================================================================
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from .base import Batch, DataSet
from .broken import DataError
from .draw import Draw
from .memory import InMemory, Split
from .sampling import Share

__all__ = ["Batch", "DataError", "DataSet", "InMemory", "Share", "Split", "build", "names"]

# what root must be, where a data set needs one
ROOTS = {
    "digits": None,
    "cifar100": "the folder that holds 'cifar-100-python' or 'cifar-100-binary'",
    "imagenet": "the folder that holds 'train' and 'val'",
}


def names() -> list[str]:
    """The data sets that :func:`build` knows."""
    return list(ROOTS)


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
        name: one of :func:`names`. ``"imagenet"`` is any two folders like ImageNet's.
        root: where its files are; digits need none.
        batch_size: samples a step of this rank; at most the training set over all ranks.
        seed: of order and augmentation.
        rank, world_size: this process among all of them.
        workers: processes that decode images, for training and for testing each; 0 decodes in this one. Sets held in
            memory have no use for them.
        download: CIFAR-100 only: fetch it into ``root`` where it is missing. Of several processes that share a disk,
            one should do so first. Nothing is ever fetched without.
        image_size: side of the images: of ImageNet's, 224 unless given; the others have one size only.
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
    if name not in ROOTS:
        near = difflib.get_close_matches(name, ROOTS, n=2, cutoff=0.3)
        nearest = f"; the nearest is {' or '.join(repr(x) for x in near)}" if near else ""
        raise ValueError(f"data must be one of {', '.join(map(repr, ROOTS))}, got '{name}'{nearest}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if download and name != "cifar100":
        raise ValueError(f"download is for 'cifar100' only, got it for '{name}'")
    share, device = Share(batch_size, seed, rank, world_size), torch.device(device)
    draw = Draw(train_fraction, label_noise, seed)
    if name == "digits":
        from . import digits

        _check_size(name, image_size, digits.SIDE)
        return digits.load(share, device, draw)
    if root is None:
        raise ValueError(f"root must be {ROOTS[name]}, got None")
    if name == "cifar100":
        from . import cifar

        _check_size(name, image_size, cifar.SIDE)
        return cifar.load(Path(root), share, device, draw, download=download, augment=augment)
    from . import imagenet

    size = imagenet.SIZE if image_size is None else image_size
    if size < 1:
        raise ValueError(f"image_size must be at least 1, got {size}")
    options = {"workers": workers, "size": size, "augment": augment, "skip_broken": skip_broken}
    return imagenet.ImageFolders(Path(root), share, device, draw, **options)  # type: ignore[arg-type]


def _check_size(name: str, given: int | None, side: int) -> None:
    if given not in (None, side):
        raise ValueError(f"image_size of '{name}' must be {side}, got {given}")
