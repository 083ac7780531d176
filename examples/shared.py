"""What the examples share: handwritten digits in place of your data, and small networks in place of yours."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def digits(train: bool = True, size: int = 16) -> TensorDataset:
    """Images [3, size, size] and classes [10]; 1,437 images to train with, 360 to test with."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 16
    images, labels = F.interpolate(images, size=(size, size), mode="bilinear"), torch.tensor(data.target)
    return TensorDataset(images[:1437], labels[:1437]) if train else TensorDataset(images[1437:], labels[1437:])


class Net(nn.Module):
    """Three stages, layer1 to layer3, of width, 2 width and 4 width channels."""

    def __init__(self, width: int, num_classes: int = 10) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        for n in (1, 2, 3):
            stage = [nn.Conv2d(sizes[n - 1], sizes[n], 3, 1 + (n > 1), 1), nn.BatchNorm2d(sizes[n]), nn.ReLU()]
            self.add_module(f"layer{n}", nn.Sequential(*stage))
        self.fc = nn.Linear(sizes[3], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(images))).mean((2, 3)))
