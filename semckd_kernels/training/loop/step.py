"""One training step: teacher, student, criterion, backward, and the update of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import HardwareConfig
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


class TrainStep:
    """Computes gradients for a batch, and updates parameters where it is told to; nothing waits for the device.

    Args:
        distiller: the Distiller, in DistributedDataParallel where there are several processes.
        teacher: in eval mode; None for the method ``ce``.
        optimizer: of everything in ``distiller``.
        scaler: of the loss; switched off unless the precision is fp16.
        autocast: of :func:`make_autocast`.
        timers: gets the times of the parts.
        clip: the largest norm of all gradients together; None clips none.
    """

    def __init__(
        self,
        distiller: nn.Module,
        teacher: FeatureNet | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        autocast: Autocast,
        timers: Timers,
        clip: float | None = None,
    ) -> None:
        self.distiller, self.teacher, self.optimizer = distiller, teacher, optimizer
        self.scaler, self.autocast, self.timers, self.clip = scaler, autocast, timers, clip

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
            if self.clip is not None:
                # of gradients in their own units: what overflowed is found by it, and skipped by the scaler's step
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.distiller.parameters(), self.clip)
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
