"""A moving average of the student's weights, which is evaluated and handed on in their place."""

from __future__ import annotations

import copy

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..models import FeatureNet


class Average:
    """Exponential moving average of all weights and running statistics of a student, by torch's own update.

    Its decay rises with the updates ``n`` so far, so that short runs are not averages of their first weights:
    ``min(decay, (1 + n) / (10 + n))``, as TensorFlow's has it. It depends on the place of a run alone, and nothing
    waits for the device.

    Args:
        student: on its device, in its memory format, and before it is compiled.
        decay: from 0 to below 1.

    Attributes:
        student: the average, in eval mode.
    """

    def __init__(self, student: FeatureNet, decay: float) -> None:
        self.student, self.decay = copy.deepcopy(student).eval().requires_grad_(False), decay
        own, trained = (net.net.state_dict().values() for net in (self.student, student))
        pairs = list(zip(own, trained, strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        # counters of batches
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, updates: int) -> None:
        """After an update of the student's weights; ``updates`` are those before it."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        own: tuple[Tensor, ...]
        own, trained = zip(*self._floats, strict=True)
        get_ema_multi_avg_fn(decay)(own, trained, 0)
        for average, value in self._others:
            average.copy_(value)
