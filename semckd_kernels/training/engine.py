"""Training and evaluation of one network."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from functools import partial

import torch
from tqdm import tqdm

from .config import Recipe
from .methods import Criterion
from .models import FeatureNet
from .samples import Split, batches

# projections with fresh weights and a large beta give large first gradients
WARM_UP_SHARE = 0.1
# the first steps pay for allocations, thread pools and compilations that the others do not
UNTIMED_STEPS = 5


class TrainingError(RuntimeError):
    """A training run that cannot go on, with the reason in one sentence."""


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate at one of ``steps`` steps: a linear warm-up, and half a cosine down to zero."""
    warm_up = max(WARM_UP_SHARE * steps, 1.0)
    return min((step + 1) / warm_up, 1.0) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@dataclass
class History:
    """Loss and milliseconds of each step of a training run."""

    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def median_step_ms(self) -> float:
        """The median step after warm-up (over all steps where there are hardly more)."""
        return statistics.median(self.step_ms[UNTIMED_STEPS:] or self.step_ms)


def train(
    net: FeatureNet,
    criterion: Criterion,
    samples: Split,
    recipe: Recipe,
    *,
    teacher: FeatureNet | None = None,
    title: str = "training",
) -> History:
    """Trains ``net`` and the parameters of ``criterion`` with one optimiser; the teacher stays as it is.

    All samples are used in every epoch, in an order that depends on the seed only. A step is timed from the choice of
    its batch to the moment its loss has reached the host, which on a GPU is after all of its kernels.

    Raises:
        TrainingError: the loss is not finite.
    """
    parameters = [*net.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(len(samples.labels) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_factor, steps=steps))
    generator = torch.Generator().manual_seed(recipe.seed)
    net.train()
    criterion.train()
    if teacher is not None:
        teacher.eval()
    history = History()
    # no bar in a log file
    with tqdm(total=steps, desc=title, unit="step", disable=None, leave=False) as bar:
        for epoch in range(recipe.epochs):
            start = time.perf_counter()
            for images, labels in batches(samples, recipe.batch_size, generator):
                teacher_output = None
                if teacher is not None:
                    with torch.no_grad():
                        teacher_output = teacher(images)
                loss = criterion(net(images), teacher_output, labels)
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                optimizer.step()
                schedule.step()
                value = loss.total.item()
                now = time.perf_counter()
                if not math.isfinite(value):
                    terms = ", ".join(f"{name} {term.item():.3g}" for name, term in loss.terms.items())
                    raise TrainingError(
                        f"the loss of '{title}' is {value} at step {len(history.losses) + 1} of {steps} ({terms}): "
                        "try a lower learning rate or a lower beta"
                    )
                history.losses.append(value)
                history.step_ms.append(1e3 * (now - start))
                bar.set_postfix(epoch=f"{epoch + 1}/{recipe.epochs}", loss=f"{value:.3f}", refresh=False)
                bar.update()
                start = time.perf_counter()
    return history


@torch.no_grad()
def evaluate(net: FeatureNet, samples: Split, batch_size: int) -> float:
    """The share of samples whose largest logit is their label's, in evaluation mode."""
    net.eval()
    hits = sum(int((net(images).logits.argmax(1) == labels).sum()) for images, labels in batches(samples, batch_size))
    return hits / len(samples.labels)
