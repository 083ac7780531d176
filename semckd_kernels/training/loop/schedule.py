"""The learning rate as a function of the update of the parameters, so that it needs no state but the run's place."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from ..config import RecipeConfig


def factor(recipe: RecipeConfig, updates_per_epoch: int, update: int) -> float:
    """Share of ``recipe.lr`` at an update, counted from 0.

    ``step``: multiplied by ``gamma`` after each of ``milestones`` (epochs). ``cosine``: half a cosine from 1 down to 0
    over all updates. Both rise linearly over the first ``warm_up`` share of updates.
    """
    updates = recipe.epochs * updates_per_epoch
    warm = min((update + 1) / max(recipe.warm_up * updates, 1.0), 1.0)
    if recipe.schedule == "cosine":
        return warm * 0.5 * (1.0 + math.cos(math.pi * update / updates))
    epoch = update // updates_per_epoch
    return warm * float(recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters; where it is a tensor (see ``graph``) nothing waits for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
