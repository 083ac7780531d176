"""Accuracy of a network on test images, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data import Batch
from ..distributed import Ranks
from ..models import FeatureNet
from .step import Autocast


class Evaluation(NamedTuple):
    """Shares of images whose label is the first, or among the first five, of the logits, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    student: FeatureNet,
    batches: Iterable[Batch],
    autocast: Autocast,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates in eval mode, and leaves the network in the mode it was in.

    Args:
        batches: this process's share of the test images, each once over all processes.
        stop: asked before every batch.

    Returns:
        None where ``stop`` said so.

    Raises:
        ValueError: there are no images.
    """
    training = student.training
    student.eval()
    # hits and losses stay on the device until the last batch
    sums: torch.Tensor | None = None
    images = 0
    try:
        for batch in batches:
            if stop():
                return None
            with autocast():
                logits = student(batch.images).logits.float()
            if sums is None:
                sums = torch.zeros(3, dtype=torch.float64, device=logits.device)
            right = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            sums += torch.stack([right[:, 0].sum(), right.sum(), loss])
            images += len(batch.labels)
    finally:
        student.train(training)
    host = torch.zeros(3, dtype=torch.float64) if sums is None else sums.cpu()
    total = (ranks or Ranks()).sum(torch.cat([host, torch.tensor([float(images)], dtype=torch.float64)])).tolist()
    if not total[3]:
        raise ValueError("there are no test images to evaluate")
    return Evaluation(total[0] / total[3], total[1] / total[3], total[2] / total[3], int(total[3]))
