"""scikit-learn's handwritten digits: no file to fetch, seconds to train on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from .draw import EVERYTHING, Draw
from .memory import InMemory, Split
from .sampling import Share

# a fifth of the samples is a common share; the split does not follow the training seed, so that accuracies of
# different seeds are measured on the same images
TEST_SHARE = 0.2
SPLIT_SEED = 0
# 8x8 pixels leave the third stage of a CIFAR ResNet 2x2; twice the side leaves it 4x4
SIDE = 16
WHITE = 16.0


def load(share: Share, device: torch.device, draw: Draw = EVERYTHING) -> InMemory:
    """1,797 grey images of ten classes, shipped inside scikit-learn.

    The 8x8 images are enlarged to 16x16 (bilinear) and normalised by the mean and the standard deviation of the
    training images, all of them. The split is fixed and stratified: 1,437 training and 360 test images. There is no
    augmentation.
    """
    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / WHITE
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    train, test = split_indices(labels)
    std, mean = torch.std_mean(images[train])
    return InMemory(
        "digits",
        [str(name) for name in raw.target_names],
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        mean=[mean.item()],
        std=[std.item()],
        white=1.0,
        share=share,
        device=device,
        draw=draw,
    )


def split_indices(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed stratified split: disjoint indices of the training and of the test samples, each ``[n]``."""
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels.tolist()
    )
    return torch.tensor(train), torch.tensor(test)
