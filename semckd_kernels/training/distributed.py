"""The processes of a run, as torchrun starts them: one a GPU, or any number on the CPU."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import first_line

# in what gloo and nccl say where a connection breaks
_BROKEN = re.compile(r"connection (?:closed|reset|refused)[\w ]*|broken pipe|timed? ?out|remote process exited", re.I)


class LostPeer(RuntimeError):
    """Another process of the run has ended, or cannot be reached any more."""


def world_size() -> int:
    """Processes of this run, from torchrun's environment; 1 without it. Raises as :func:`from_environment` does."""
    return from_environment().world_size


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


def from_environment() -> Ranks:
    """This process as torchrun's environment variables describe it; alone where there are none.

    Raises:
        ValueError: only some of the variables are there, or one makes no sense.
    """
    rank, size, local_rank = (_whole(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None and size in (None, 1):
        return Ranks()
    if rank is None or size is None:
        there, missing = ("WORLD_SIZE", "RANK") if rank is None else ("RANK", "WORLD_SIZE")
        raise ValueError(
            f"the environment has {there}={os.environ[there]} but no {missing}: start the processes by torchrun, which "
            f"sets both, or unset {there}"
        )
    if not 0 <= rank < size:
        raise ValueError(f"the environment's RANK must be from 0 to WORLD_SIZE - 1 = {size - 1}, got {rank}")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if size > 1 and not os.environ.get(name):
            raise ValueError(
                f"the environment has WORLD_SIZE={size} but no {name}: start the processes by torchrun, which sets it, "
                "or unset WORLD_SIZE and RANK"
            )
    _whole("MASTER_PORT")
    return Ranks(rank, local_rank or 0, size)


def _whole(name: str) -> int | None:
    """A variable of the environment that holds a whole number; None where it is not set."""
    text = os.environ.get(name)
    if not text:
        return None
    least = 1 if name == "WORLD_SIZE" else 0
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ValueError(
            f"the environment's {name} must be a whole number of at least {least}, got '{text}': torchrun sets it; "
            "unset it for a single process"
        )
    return int(text)


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Within it, what breaks because another process has ended is a :class:`LostPeer`, with what torch says of it.

    Processes that talk by gloo are told at once. Of those that talk by nccl torch itself ends the survivors.
    """
    try:
        yield
    except RuntimeError as error:
        broken = _BROKEN.search(str(error))
        if ranks.world_size == 1 or not (broken or isinstance(error, dist.DistError)):
            raise
        reason = broken.group().lower() if broken else first_line(error)
        raise LostPeer(f"process {ranks.rank} of {ranks.world_size} has lost another process ({reason})") from error


def connect(device: str) -> Ranks:
    """Joins the other processes, by nccl between GPUs and by gloo on the CPU; those it has joined already stay.

    Raises:
        ValueError: torchrun's environment is not whole, or there are fewer GPUs than processes on this machine.
        RuntimeError: the others cannot be reached.
    """
    ranks = from_environment()
    size = ranks.world_size
    if size == 1:
        return Ranks()
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if not os.environ.get("LOCAL_RANK") and torch.cuda.device_count() > 1:
            raise ValueError(
                f"{torch.cuda.device_count()} GPUs are visible, but the environment has no LOCAL_RANK: start the "
                "processes by torchrun, which sets it"
            )
        if ranks.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{torch.cuda.device_count()} GPUs are visible, too few for process {ranks.local_rank} here"
            )
        torch.cuda.set_device(ranks.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", store=_store(), rank=ranks.rank, world_size=size)
    return ranks


def _store() -> Any:
    """Where processes leave their addresses for each other.

    Where torchrun has restarted them (``--max-restarts``), it may hand out the store of the attempt before, and they
    would wait for processes that are gone (seen with torch 2.14, ``--standalone`` and gloo).
    """
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store)  # type: ignore[attr-defined]


def disconnect() -> None:
    """Leaves the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among the others, by :func:`connect`; a group that there was before stays behind it."""
    before = dist.is_initialized()
    ranks = connect(device)
    try:
        yield ranks
    finally:
        if not before:
            disconnect()
