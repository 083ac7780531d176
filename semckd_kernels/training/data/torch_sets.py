"""What a torch data set tells about its samples before they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset


class Samples:
    """A data set that has a length and gives ``(image, label)`` by number: a :class:`.Source`.

    Args:
        dataset: the data set.
        what: whose sample it is, such as ``"the training set of 'NAME'"``.
    """

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what
        self.labels = labels_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[Any, Any]:
        sample = self.dataset[index]
        if not (isinstance(sample, (tuple, list)) and len(sample) == 2):
            size = f" of {len(sample)}" if isinstance(sample, (tuple, list, dict)) else ""
            raise ValueError(f"a sample must be an image and a label, got a {type(sample).__name__}{size}")
        return sample[0], sample[1]

    def where(self, index: int) -> str:
        return f"{index} of {self.what}"


def labels_of(dataset: Any) -> Tensor | None:
    """All labels ``[N]``, int64, as far as a data set has them: ``targets`` or ``labels``, or a tensor of its own.

    None where it has none of one whole number a sample, or where it changes them (``target_transform``).
    """
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if known and len(known) == len(parts) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    found = dataset.tensors[1:2] if isinstance(dataset, TensorDataset) else ()
    for values in (*found, *(getattr(dataset, name, None) for name in ("targets", "labels"))):
        if (labels := _whole_numbers(values, len(dataset))) is not None:
            return labels
    return None


def class_names_of(dataset: Any) -> list[str] | None:
    """The attribute ``classes``, a list of names as torchvision's data sets have it; None where there is none."""
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return class_names_of(dataset.datasets[0])
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not names:
        return None
    return [str(name) for name in names]


def is_map(value: Any) -> bool:
    """Whether it has a length and samples by number."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (str, bytes, dict))


def is_loader(value: Any) -> bool:
    """Whether it has a length and gives batches, such as a DataLoader."""
    # every Dataset of torch has the attribute, those without samples by number as well
    return (
        hasattr(value, "__iter__")
        and hasattr(value, "__len__")
        and not isinstance(value, Dataset)
        and not is_map(value)
    )


def _whole_numbers(values: Any, count: int) -> Tensor | None:
    if values is None or callable(values):
        return None
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    kept = labels.shape == (count,) and not (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    )
    return labels.to(torch.int64) if kept else None
