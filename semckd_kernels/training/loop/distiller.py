"""The module that trains, and that ``DistributedDataParallel`` wraps: student and criterion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..methods import Criterion
from ..models import FeatureNet, Output
from .timers import Clock


class Distiller(nn.Module):
    """Images and the teacher's output to the loss, and to a record of the step that stays on the device.

    The teacher is not part of it: nothing of it is trained, synchronised or kept in checkpoints.

    Args:
        student: with its feature maps.
        criterion: its parameters are trained together with the student's.

    Call:
        ``distiller(images [B, C, H, W], labels [B], teacher | None) -> (loss, record)``. ``record`` is a detached fp32
        vector: the loss, each of ``criterion.terms``, the number of labels that the student gets right, and the mean
        over the batch of SemCKD's attention, row by row, where there is one; see :attr:`columns`.
    """

    def __init__(self, student: FeatureNet, criterion: Criterion) -> None:
        super().__init__()
        self.student, self.criterion = student, criterion
        self.clock = Clock()

    @property
    def columns(self) -> list[str]:
        """What the first values of a record are."""
        return ["loss", *self.criterion.terms, "hits"]

    @property
    def attention_size(self) -> int:
        """How many weights of the attention end a record."""
        semckd = self.criterion.attention
        return 0 if semckd is None else semckd.s_len * semckd.t_len

    def forward(self, images: Tensor, labels: Tensor, teacher: Output | None) -> tuple[Tensor, Tensor]:
        output = self.student(images)
        self.clock.mark("student")
        if output.logits.requires_grad:
            # the backward pass takes nodes in the reverse order of their making, so that the gradient of the logits is
            # used once the criterion has no node left
            output.logits.register_hook(self._criterion_is_done)
        loss = self.criterion(output, teacher, labels)
        self.clock.mark("criterion")
        with torch.no_grad():
            hits = (output.logits.argmax(1) == labels).sum()
            record = torch.stack([loss.total, *loss.terms.values(), hits]).float()
            if loss.weight is not None:
                record = torch.cat([record, loss.weight.mean(0).flatten().float()])
        return loss.total, record

    def _criterion_is_done(self, gradient: Tensor) -> None:
        self.clock.mark("criterion")
