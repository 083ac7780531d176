"""Data of your own: semckd train --data own_data:make --data-root FOLDER --student resnet8x4 --out runs/own"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


class Arrays(Dataset):
    """Photos and labels of one file, ``images [N, H, W, 3]`` of uint8 and ``labels [N]``."""

    def __init__(self, path: Path, augment: bool = False) -> None:
        with np.load(path) as arrays:
            self.images, self.targets = torch.from_numpy(arrays["images"]), arrays["labels"]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        # random choices of torch, Python and numpy follow the run's seed, epoch and sample
        image = self.images[index].movedim(-1, 0)
        mirrored = self.augment and torch.rand(()) < 0.5
        return image.flip(-1) if mirrored else image, int(self.targets[index])


def make(root: str, augment: bool) -> tuple[Dataset, Dataset, list[str]]:
    """Training and test samples, and the names of the classes."""
    folder = Path(root)
    names = (folder / "classes.txt").read_text().split()
    return Arrays(folder / "train.npz", augment), Arrays(folder / "test.npz"), names
