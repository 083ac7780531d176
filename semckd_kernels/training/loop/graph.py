"""A whole training step as one CUDA graph: at CIFAR size a step is hundreds of launches of small kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data import Batch
from .step import TrainStep
from .timers import Timers

# allocations, cuDNN's choice of algorithms and lazy initialisation all happen before the capture
WARM_UP_STEPS = 3


class GraphedStep:
    """A :class:`TrainStep` that is captured at the first full batch and replayed from then on.

    Batches are copied into fixed buffers. Warm-up steps run on a side stream, and everything that they change is put
    back before the capture, so that a graphed run starts from the parameters that an eager one starts from. A batch of
    another shape (the last one of an epoch) runs eagerly. Parts inside the graph cannot be timed.

    Args:
        step: what to capture; its optimiser has a learning rate that is a tensor.
        modules: everything with parameters or buffers that a step changes.
        batch_size: of the batches to capture.
    """

    def __init__(self, step: TrainStep, modules: nn.Module, batch_size: int) -> None:
        self.step, self.modules, self.batch_size = step, modules, batch_size
        self.graph: torch.cuda.CUDAGraph | None = None
        self.timers = step.timers

    def __call__(self, batch: Batch, share: float = 1.0, update: bool = True) -> Tensor:
        if len(batch.labels) != self.batch_size:
            return self.step(batch, share, update)
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        self.batch.images.copy_(batch.images, non_blocking=True)
        self.batch.labels.copy_(batch.labels, non_blocking=True)
        self.graph.replay()
        return self.record

    def _capture(self, batch: Batch) -> None:
        self.batch = Batch(torch.clone(batch.images), torch.clone(batch.labels))
        # events cannot be read out of a graph
        timers_before = self.step.timers, self.modules.timers
        self.step.timers = self.modules.timers = Timers()  # type: ignore[assignment]
        try:
            self._warm_up()
            graph = torch.cuda.CUDAGraph()
            # of this thread's calls alone: a loader's thread may ask the driver for pinned memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.record = self.step(self.batch)
        finally:
            self.step.timers, self.modules.timers = timers_before  # type: ignore[assignment]
        self.graph = graph

    def _states(self) -> list[Tensor]:
        """What the optimizer keeps of its parameters."""
        return [x for state in self.step.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]

    def _warm_up(self) -> None:
        began = self._states()
        changed = [*self.modules.parameters(), *self.modules.buffers(), *began]
        before = [x.detach().clone() for x in changed]
        generator = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.step(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for x, value in zip(changed, before, strict=True):
                x.copy_(value)
            # these optimizers' states begin as zeros, see optimizers.FUSED
            known = set(map(id, began))
            for x in self._states():
                if id(x) not in known:
                    x.zero_()
        torch.cuda.set_rng_state(generator)
