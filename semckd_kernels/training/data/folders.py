"""Image files in one folder a class, as ImageNet's are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from .indexed import Indexed, Pair, image_size, image_transforms
from .options import Options

TRAIN = "train"
# the first of them that is there
TEST = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Files:
    """Paths of images, below ``root``, and their labels: a :class:`.Source`.

    The paths are one array of bytes: worker processes share it, where they would each come to copy a list of a million
    strings.
    """

    root: Path
    paths: np.ndarray[tuple[int], np.dtype[np.bytes_]]  # [N]
    labels: Tensor  # [N], int64

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self._path(index)) as image:
            return image.convert("RGB"), int(self.labels[index])

    def where(self, index: int) -> str:
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(bytes(self.paths[index]))


def load(name: str, root: Path, options: Options) -> Indexed:
    """Images of ``root/train/CLASS/`` and ``root/val/CLASS/``, decoded by worker processes.

    Raises:
        FileNotFoundError: a folder is missing, or holds no images.
        ValueError: the classes of the two are not the same.
    """
    size = image_size(options)
    train, test, classes = read(root)
    return Indexed(name, classes, Pair(train, test), image_transforms(size, options.augment), (3, size, size), options)


def read(root: Path) -> tuple[Files, Files, list[str]]:
    """Training and test images, and the names of the classes, sorted; raises as :func:`load` does."""
    test = find_test(root)
    (train, classes), (files, test_classes) = (_read_split(root, split) for split in (TRAIN, test))
    check_same_classes(classes, test_classes, f"'{root}'", (TRAIN, test))
    return train, files, classes


def find_test(root: Path) -> str:
    """The name of the folder of test images: of :data:`TEST` the first that is there, or the first."""
    return next((split for split in TEST if (root / split).is_dir()), TEST[0])


def check_same_classes(train: list[str], test: list[str], what: str, splits: tuple[str, str]) -> None:
    """Raises ValueError where the classes of training and test samples are not the same, in the same order."""
    if train == test:
        return
    only = {splits[0]: set(train) - set(test), splits[1]: set(test) - set(train)}
    have = " and ".join(
        f"only '{split}' has '{min(names)}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for split, names in only.items()
        if names
    )
    got = have or "them in another order"
    raise ValueError(f"{what} must have the same classes in '{splits[0]}' and '{splits[1]}', got {got}")


def _read_split(root: Path, split: str) -> tuple[Files, list[str]]:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder '{folder}': root must hold train/CLASS/*.JPEG and val/CLASS/*.JPEG (or valid, "
            "validation, test; images of any type)"
        )
    try:
        found = ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"'{folder}' must hold one folder of images a class, and has no folder") from error
    counts = torch.bincount(torch.tensor(found.targets, dtype=torch.int64), minlength=len(found.classes))
    if not counts.all():
        empty = found.classes[int((counts == 0).nonzero()[0])]
        raise FileNotFoundError(f"there are no images in '{folder / empty}'")
    paths = [os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples]
    return Files(folder, np.array(paths), torch.tensor(found.targets)), list(found.classes)
