"""One training step: teacher, student, criterion, backward, and the update of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import HardwareConfig, RecipeConfig
from ..data import Batch
from ..models import FeatureNet
from .timers import Timers

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Autocast = Callable[[], AbstractContextManager[object]]


def make_autocast(hardware: HardwareConfig) -> Autocast:
    """A context in which networks compute in the run's precision."""
    if hardware.precision not in HALF_TYPES:
        return nullcontext
    return partial(torch.autocast, torch.device(hardware.device).type, dtype=HALF_TYPES[hardware.precision])


def make_optimizer(module: nn.Module, recipe: RecipeConfig, graphed: bool) -> torch.optim.SGD:
    """SGD over all parameters of student and criterion, each update one kernel (or one call on the CPU).

    A CUDA graph holds numbers as they were at its capture, so that its learning rate is a tensor.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    if graphed:
        # put in later, since the constructor would wait for the device to look at it
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), recipe.lr, device=parameters[0].device)
    if recipe.momentum:
        # torch leaves these uninitialised until a first step, which fp16's scaler may skip
        for p in parameters:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


class TrainStep:
    """Computes gradients for a batch, and updates parameters where it is told to; nothing waits for the device.

    Args:
        distiller: the Distiller, in DistributedDataParallel where there are several processes.
        teacher: in eval mode; None for the method ``ce``.
        optimizer: of everything in ``distiller``.
        scaler: of the loss; switched off unless the precision is fp16.
        autocast: of :func:`make_autocast`.
        timers: gets the times of the parts.
    """

    def __init__(
        self,
        distiller: nn.Module,
        teacher: FeatureNet | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        autocast: Autocast,
        timers: Timers,
    ) -> None:
        self.distiller, self.teacher, self.optimizer = distiller, teacher, optimizer
        self.scaler, self.autocast, self.timers = scaler, autocast, timers

    def __call__(self, batch: Batch, share: float = 1.0, update: bool = True) -> Tensor:
        """The step's record, see Distiller.

        Args:
            batch: images in the memory format that the networks have.
            share: what the loss counts for in the update: 1 / (steps an update).
            update: whether parameters change after this step; gradients add up until then.
        """
        # processes exchange gradients once an update
        quiet = isinstance(self.distiller, DistributedDataParallel) and not update
        with self.distiller.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            record = self._gradients(batch, share)
        if update:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self.timers.mark("optimizer")
        return record

    def _gradients(self, batch: Batch, share: float) -> Tensor:
        with self.autocast():
            output = None
            if self.teacher is not None:
                with torch.no_grad():
                    output = self.teacher(batch.images)
                self.timers.mark("teacher")
            record: Tensor
            loss, record = self.distiller(batch.images, batch.labels, output)
        self.scaler.scale(loss if share == 1.0 else share * loss).backward()
        self.timers.mark("student")
        return record
