"""CIFAR-100 from its official files, of either format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import first_line
from . import unpickle
from .draw import EVERYTHING, Draw
from .memory import InMemory, Split
from .sampling import Share

CLASSES, SIDE, PIXELS = 100, 32, 3 * 32 * 32
# of the 50,000 training images, as the distillation papers round them
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
# https://www.cs.toronto.edu/~kriz/cifar.html; a record of the binary format is a coarse and a fine label and the pixels
RECORD = 2 + PIXELS
# format: folder and files
FILES = {
    "cifar-100-python": ("train", "test", "meta"),
    "cifar-100-binary": ("train.bin", "test.bin", "fine_label_names.txt"),
}
# zeros around a training image, of which 32x32 pixels are cut out
PAD = 4


def load(
    root: Path,
    share: Share,
    device: torch.device,
    draw: Draw = EVERYTHING,
    *,
    download: bool = False,
    augment: bool = True,
) -> InMemory:
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels and 100 classes.

    Args:
        root: the folder ``cifar-100-python`` or ``cifar-100-binary``, or the one that holds it.
        share, draw: the samples of this process, and of the run.
        download: fetch the files into ``root`` where they are missing (by torchvision, which checks them).
        augment: random crops with four zeros on each side, and random mirror images.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a file is not what it should be.
        ConnectionError: the files cannot be fetched.
    """
    if download and find(root) is None:
        fetch(root)
    train, test, names = read(root)
    pad = PAD if augment else None
    return InMemory(
        "cifar100",
        names,
        train,
        test,
        mean=MEAN,
        std=STD,
        white=255.0,
        share=share,
        device=device,
        draw=draw,
        pad=pad,
    )


def find(root: Path) -> tuple[str, Path] | None:
    """The format of the files in ``root`` or in the official folder in it, and their folder."""
    for form, files in FILES.items():
        for folder in (root, root / form):
            if all((folder / name).is_file() for name in files):
                return form, folder
    return None


def read(root: Path) -> tuple[Split, Split, list[str]]:
    """Training and test images (uint8, ``[N, 3, 32, 32]``) with their fine labels, and the names of the classes.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a file is not what it should be.
    """
    found = find(root)
    if found is None:
        wanted = " and ".join(f"'{form}' with {', '.join(files)}" for form, files in FILES.items())
        raise FileNotFoundError(
            f"CIFAR-100 is not in '{root}': looked there and in it for {wanted}; unpack one of the archives of "
            "https://www.cs.toronto.edu/~kriz/cifar.html there, or ask for download"
        )
    form, folder = found
    train, test, names = (folder / name for name in FILES[form])
    if form == "cifar-100-python":
        classes = _entry(unpickle.load(names), "fine_label_names", names)
        return _read_pickle(train), _read_pickle(test), _check_names(classes, names)
    classes = names.read_text(encoding="latin1").split()
    return _read_binary(train), _read_binary(test), _check_names(classes, names)


def fetch(root: Path) -> None:
    """Downloads and unpacks the Python format into ``root``.

    Raises:
        ConnectionError: that does not succeed.
    """
    from torchvision.datasets import CIFAR100

    try:
        CIFAR100(str(root), download=True)
    except Exception as error:
        # torchvision raises what urllib, tarfile and hashlib do
        raise ConnectionError(f"CIFAR-100 cannot be downloaded to '{root}': {first_line(error)}") from error


def _read_pickle(path: Path) -> Split:
    content = unpickle.load(path)
    pixels, labels = (_entry(content, key, path) for key in ("data", "fine_labels"))
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (PIXELS,)):
        got = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"'data' of '{path}' must be uint8 [N, {PIXELS}], got {got}")
    try:
        numbers = np.asarray(labels, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"'fine_labels' of '{path}' must be whole numbers: {error}") from error
    return _check(pixels, numbers, path)


def _read_binary(path: Path) -> Split:
    size = path.stat().st_size
    if size % RECORD:
        raise ValueError(f"'{path}' must hold records of {RECORD} bytes, got {size} bytes: it is cut short")
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD)
    return _check(records[:, 2:], records[:, 1].astype(np.int64), path)


def _check(pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], path: Path) -> Split:
    if labels.shape != (len(pixels),) or not len(pixels):
        raise ValueError(
            f"'{path}' must hold one label an image, got {len(pixels)} images and labels {list(labels.shape)}"
        )
    if not 0 <= labels.min() <= labels.max() < CLASSES:
        wrong = labels.max() if labels.max() >= CLASSES else labels.min()
        raise ValueError(f"fine labels of '{path}' must be from 0 to {CLASSES - 1}, got {wrong}")
    # a copy, as arrays that come out of a pickle may be read-only
    images = torch.tensor(pixels.reshape(-1, 3, SIDE, SIDE))
    return Split(images, torch.from_numpy(labels))


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a dict, got {type(content).__name__}")
    # bytes where the file was written with keys of that type
    for name in (key, key.encode()):
        if name in content:
            return content[name]
    raise ValueError(f"'{path}' must hold '{key}', got {sorted(map(str, content))}")


def _check_names(names: Any, path: Path) -> list[str]:
    if not isinstance(names, list):
        raise ValueError(f"'{path}' must hold a list of names, got {type(names).__name__}")
    texts = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    if len(texts) != CLASSES:
        raise ValueError(f"'{path}' must name {CLASSES} classes, got {len(texts)}")
    return texts
