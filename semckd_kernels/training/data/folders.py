"""Image files in one folder a class, as ImageNet's are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder

from .draw import Draw


class Files(NamedTuple):
    """Paths of images, below ``root``, and their labels.

    The paths are one array of bytes: worker processes share it, where they would each come to copy a list of a million
    strings.
    """

    root: Path
    paths: np.ndarray[tuple[int], np.dtype[np.bytes_]]  # [N]
    labels: Tensor  # [N], int64

    def drawn(self, draw: Draw, classes: int) -> Files:
        """The files that stay, with the labels that they get."""
        if draw.is_everything:
            return self
        kept = draw.samples(self.labels)
        return Files(self.root, self.paths[kept.numpy()], draw.labels(self.labels[kept], classes))

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(bytes(self.paths[index]))


def read(root: Path) -> tuple[Files, Files, list[str]]:
    """The images of ``root/train/CLASS/`` and ``root/val/CLASS/``, and the names of the classes, sorted.

    Raises:
        FileNotFoundError: a folder is missing, or holds no images.
        ValueError: the classes of the two are not the same.
    """
    (train, classes), (val, val_classes) = (_read_split(root, split) for split in ("train", "val"))
    if classes != val_classes:
        only = {"train": set(classes) - set(val_classes), "val": set(val_classes) - set(classes)}
        have = " and ".join(
            f"only '{split}' has '{min(names)}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for split, names in only.items()
            if names
        )
        raise ValueError(f"'{root}' must have the same classes in 'train' and 'val', got {have}")
    return train, val, classes


def _read_split(root: Path, split: str) -> tuple[Files, list[str]]:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder '{folder}': root must hold train/CLASS/*.JPEG and val/CLASS/*.JPEG"
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
