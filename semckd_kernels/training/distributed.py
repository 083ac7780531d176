"""The processes of a run, as torchrun starts them: one a GPU, or any number on the CPU."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Processes of this run, from torchrun's environment; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Ranks:
    """This process among all of its run; with one process every method is free."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: GPUs are dealt out by local rank unless an index is given."""
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.local_rank if self.world_size > 1 else torch.cuda.current_device())
        return device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes.

        Running statistics are each process's own (training does not read them) until :meth:`share_buffers`, instead of
        being sent around in every step.
        """
        if self.world_size == 1:
            return module
        options: dict[str, Any] = {"gradient_as_bucket_view": True}
        # torch 2.14 has renamed it
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
        return DistributedDataParallel(module, **options)

    def share_buffers(self, module: nn.Module) -> None:
        """Gives all processes the running statistics of the first."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a vector on the host."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """The maximum over processes of a vector on the host."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return values
        on_device = values.to(self._collective_device())
        dist.all_reduce(on_device, operation)
        return on_device.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """A small picklable value of every process, in order of rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def agree(self, error: str | None) -> str | None:
        """The first error of any process, on every process: all of them stop, or none does."""
        return next((found for found in self.gather(error) if found is not None), None)

    def on_main(self, action: Callable[[], None], failure: type[Exception]) -> None:
        """Something that the first process does alone; the others wait for it, and fail where it does.

        Raises:
            failure: the action raised it; with the same text on every process.
        """
        error = None
        if self.is_main:
            try:
                action()
            except failure as found:
                error = str(found)
        if (error := self.agree(error)) is not None:
            raise failure(error)

    @staticmethod
    def _collective_device() -> torch.device:
        return (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )


def connect(device: str) -> Ranks:
    """Joins the other processes, by nccl between GPUs and by gloo on the CPU; those it has joined already stay.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
        RuntimeError: the others cannot be reached.
    """
    if world_size() == 1:
        return Ranks()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")), world_size())
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if ranks.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{torch.cuda.device_count()} GPUs are visible, too few for process {ranks.local_rank} here"
            )
        torch.cuda.set_device(ranks.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return ranks


def disconnect() -> None:
    """Leaves the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
