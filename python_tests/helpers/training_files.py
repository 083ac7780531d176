"""Small data sets in the formats of the large ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semckd_kernels.training.data import Split

CLASS_NAMES = [f"class_{n:02d}" for n in range(100)]


def cifar_split(count: int, seed: int) -> Split:
    """Random images of CIFAR's size, whose labels are the hundred classes in turns."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 100)


def write_cifar_python(root: Path, train: Split, test: Split) -> Path:
    """``cifar-100-python`` as the official archive has it."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        content = {
            "filenames": [f"image_{n}.png" for n in range(len(labels))],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": images.flatten(1).numpy(),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"fine_label_names": CLASS_NAMES, "coarse_label_names": [f"group_{n}" for n in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_cifar_binary(root: Path, train: Split, test: Split) -> Path:
    """``cifar-100-binary`` as the official archive has it."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        both = torch.stack([labels // 5, labels], 1).to(torch.uint8)
        torch.cat([both, images.flatten(1)], 1).numpy().tofile(folder / f"{name}.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return folder


def write_image_folders(root: Path, classes: int = 3, train: int = 6, val: int = 4, seed: int = 0) -> Path:
    """``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG`` of many sizes; the first image of each class is grey."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"n{c:08d}"
            folder.mkdir(parents=True)
            for n in range(count):
                # smooth, as noise would not survive JPEG: a few random colours, enlarged
                colours = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                size = (int(random.integers(20, 90)), int(random.integers(20, 90)))
                image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
                (image.convert("L") if n == 0 else image).save(folder / f"{n}.JPEG", quality=90)
    return root
