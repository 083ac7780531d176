"""The learning rate as a function of the update of the parameters, so that it needs no state but the run's place.

``step`` and ``cosine`` are formulas; ``torch/NAME`` and ``timm/NAME`` are schedulers of these libraries, which are
asked for the learning rate of each update.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from ..features import nearest
from ..install import pip_install
from .errors import first_line

if TYPE_CHECKING:
    from .config import RecipeConfig

# learning rate of an update, counted from 0
Schedule = Callable[[int], float]
# the fields of a recipe that a schedule uses, out of these three; every one has the warm-up
FIELDS = ("milestones", "gamma", "min_lr")
KNOWN: dict[str, tuple[str, ...]] = {
    "step": ("milestones", "gamma"),
    "cosine": ("min_lr",),
    "torch/OneCycleLR": (),
    "torch/PolynomialLR": (),
    "torch/ExponentialLR": ("gamma",),
    "torch/CosineAnnealingLR": ("min_lr",),
    "torch/MultiStepLR": ("milestones", "gamma"),
    "timm/constant": (),
    "timm/cosine": ("min_lr",),
    "timm/tanh": ("min_lr",),
    # gamma is the power
    "timm/poly": ("gamma", "min_lr"),
    "timm/multistep": ("milestones", "gamma"),
    "timm/wsd": ("min_lr",),
    "timm/rsqrt": ("min_lr",),
}


def check(name: str) -> None:
    """Raises ValueError where there is no such schedule."""
    if name not in KNOWN:
        raise ValueError(f"recipe.schedule must be one of {', '.join(KNOWN)}, got '{name}'{nearest(name, KNOWN)}")


def fields(name: str) -> tuple[str, ...]:
    """The fields of a recipe, out of :data:`FIELDS`, that a schedule uses."""
    return KNOWN[name]


def make(recipe: RecipeConfig, updates_per_epoch: int) -> Schedule:
    """The learning rates of a run.

    Raises:
        ValueError: timm is not installed, or a scheduler refuses the recipe.
    """
    library, _, name = recipe.schedule.partition("/")
    if not name:
        return lambda update: recipe.lr * factor(recipe, updates_per_epoch, update)
    try:
        return (_of_torch if library == "torch" else _of_timm)(name, recipe, updates_per_epoch)
    except ImportError as error:
        raise ValueError(f"schedule '{recipe.schedule}': timm is not installed: run {pip_install('timm')}") from error
    # whatever a constructor raises, its own message says best what does not fit
    except Exception as error:
        raise ValueError(f"schedule '{recipe.schedule}': {first_line(error)}") from error


def factor(recipe: RecipeConfig, updates_per_epoch: int, update: int) -> float:
    """Share of ``recipe.lr`` at an update, counted from 0, by the schedules ``step`` and ``cosine``.

    ``step``: multiplied by ``gamma`` after each of ``milestones`` (epochs). ``cosine``: half a cosine from 1 down to
    ``min_lr / lr`` over all updates. Both rise linearly over the first ``warm_up`` share of updates.
    """
    updates = recipe.epochs * updates_per_epoch
    warm = _warm(recipe, updates, update)
    if recipe.schedule == "cosine":
        least = recipe.min_lr / recipe.lr
        return warm * (least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * update / updates)))
    epoch = update // updates_per_epoch
    return warm * float(recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters; where it is a tensor (see ``graph``) nothing waits for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _warm(recipe: RecipeConfig, updates: int, update: int) -> float:
    return min((update + 1) / max(recipe.warm_up * updates, 1.0), 1.0)


def _stand_in(lr: float) -> Optimizer:
    """An optimizer whose learning rate a scheduler may set."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def _of_torch(name: str, recipe: RecipeConfig, updates_per_epoch: int) -> Schedule:
    """A scheduler that is stepped once an update; its warm-up is that of the other schedules."""
    updates = recipe.epochs * updates_per_epoch
    options: dict[str, dict[str, Any]] = {
        "OneCycleLR": {"max_lr": recipe.lr, "total_steps": updates, "cycle_momentum": False},
        "PolynomialLR": {"total_iters": updates},
        # by gamma an epoch
        "ExponentialLR": {"gamma": recipe.gamma ** (1 / updates_per_epoch)},
        "CosineAnnealingLR": {"T_max": updates, "eta_min": recipe.min_lr},
        "MultiStepLR": {"milestones": [epoch * updates_per_epoch for epoch in recipe.milestones]}
        | {"gamma": recipe.gamma},
    }
    optimizer = _stand_in(recipe.lr)
    scheduler = getattr(lr_scheduler, name)(optimizer, **options[name])
    found = [float(optimizer.param_groups[0]["lr"])]

    def lr(update: int) -> float:
        # each follows from the one before
        while len(found) <= update:
            optimizer.step()
            scheduler.step()
            found.append(float(optimizer.param_groups[0]["lr"]))
        return _warm(recipe, updates, update) * found[update]

    return lr


def _of_timm(name: str, recipe: RecipeConfig, updates_per_epoch: int) -> Schedule:
    """A scheduler that gives the value of any update; it has a warm-up of its own."""
    timm: Any = importlib.import_module("timm.scheduler")
    updates = recipe.epochs * updates_per_epoch
    warm, optimizer = round(recipe.warm_up * updates), _stand_in(recipe.lr)
    # counted in updates: an epoch of one update
    scheduler, _ = timm.create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=updates,
        decay_milestones=[epoch * updates_per_epoch for epoch in recipe.milestones],
        decay_rate=recipe.gamma,
        min_lr=recipe.min_lr,
        warmup_epochs=warm,
        warmup_lr=recipe.lr / max(warm, 1),
        step_on_epochs=False,
        updates_per_epoch=1,
    )

    def lr(update: int) -> float:
        scheduler.step_update(update)
        return float(optimizer.param_groups[0]["lr"])

    return lr
