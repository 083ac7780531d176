"""Decoded batches from worker processes, and their way to the device."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import first_line
from .base import Batch, Normaliser
from .broken import Broken, BrokenImages, DataError, describe
from .decoding import Decoder, Item, Pixels, collate, leave_signals_to_the_parent
from .random_state import lent


class Plan:
    """The batches to decode next: a batch sampler that is told them before each pass.

    Torch keeps its iterator to the next pass. It is this object, so that nothing keeps the batches of a pass that has
    ended, which know the data set: the workers of a data set end with it.
    """

    def __init__(self) -> None:
        self.batches: Iterator[list[Item]] = iter(())

    def __iter__(self) -> Iterator[list[Item]]:
        return self

    def __next__(self) -> list[Item]:
        return next(self.batches)


class Loader:
    """Workers that stay from one pass to the next.

    Args:
        decoder: what they do.
        workers: processes; 0 decodes in this one.
        pin: whether batches lie in memory that a GPU can fetch from.
        broken: takes the images that cannot be decoded.
        least: images that must be left of a batch without these.
    """

    def __init__(self, decoder: Decoder, workers: int, pin: bool, broken: BrokenImages, least: int) -> None:
        self.broken, self.least = broken, least
        self.plan = Plan()
        self.passes = 0
        self.loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=self.plan,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            # each pass draws a number that nobody uses, by default from torch's own generator
            generator=torch.Generator(),
        )
        leave_signals(self.loader)

    def close(self) -> None:
        """Ends the workers and any pass; another pass starts new ones."""
        self.passes += 1
        self.plan.batches = iter(())
        end_workers(self.loader)

    def batches(self, plan: Iterable[list[Item]]) -> Iterator[Pixels]:
        """One pass over the batches of ``plan``; it ends any earlier one.

        Raises:
            DataError: an image cannot be decoded and is not to be skipped, or hardly any of a batch can; the message
                names the file. Or a worker has died.
            RuntimeError: an earlier pass is to be continued.
        """
        self.passes += 1
        own = self.passes
        self.plan.batches = iter(plan)
        try:
            for pixels, broken in self._decoded():
                self.broken.add(broken)
                if pixels is None or (broken and len(pixels.labels) < self.least):
                    reasons = describe({found.path: found.reason for found in broken})
                    raise DataError(f"too few images of a batch are left: {reasons}")
                yield pixels
                if own != self.passes:
                    raise RuntimeError("these batches ended when others were asked for: one iterator at a time")
        finally:
            if own == self.passes:
                self.plan.batches = iter(())

    def _decoded(self) -> Iterator[tuple[Pixels | None, list[Broken]]]:
        batches: Iterator[Any] | None = None
        while True:
            try:
                if batches is None:
                    batches = iter(self.loader)
                with nullcontext() if self.loader.num_workers else lent():
                    decoded = next(batches)
            except StopIteration:
                return
            # a worker that was killed, or that cannot be started or reached
            except (RuntimeError, OSError, EOFError) as error:
                raise DataError(
                    f"a process that decodes images has failed, for want of memory perhaps ({first_line(error)}): "
                    "fewer --workers need less"
                ) from error
            # where workers are not forked
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise DataError(
                    f"the data cannot be sent to the processes that decode it ({first_line(error)}): --workers 0 needs "
                    "none"
                ) from error
            yield decoded


def leave_signals(loader: Any) -> None:
    """Has workers of a DataLoader leave signals to their parent while the loader is there; before its first pass."""
    if not isinstance(loader, DataLoader) or not loader.num_workers:
        return
    leaving = multiprocessing.Event()
    # torch's last means to end a worker is SIGTERM
    weakref.finalize(loader, _leave, leaving, os.getpid()).atexit = False
    # before multiprocessing's own call at exit, which ends the workers that are left and waits for them
    atexit.register(leaving.set)
    loader.worker_init_fn = partial(_begin_worker, leaving, loader.worker_init_fn)


def end_workers(loader: Any) -> None:
    """Ends the workers that a DataLoader keeps from one pass to the next; another pass starts new ones.

    Left to the garbage collector they take seconds each: it may take their queues apart before torch ends them.
    """
    if isinstance(loader, DataLoader):
        # torch's own reference is the last, and it has no call for this
        loader._iterator = None


def _begin_worker(leaving: Event, theirs: Callable[[int], None] | None, worker: int) -> None:
    if theirs is not None:
        theirs(worker)
    leave_signals_to_the_parent(leaving)


def _leave(leaving: Event, parent: int) -> None:
    # a worker has a copy of this object, which may come to its end there
    if os.getpid() == parent:
        leaving.set()
        atexit.unregister(leaving.set)


def on_device(pixels: Iterable[Pixels], normaliser: Normaliser, device: torch.device) -> Iterator[Batch]:
    """Normalised batches; on a GPU the next one is fetched while the present one is worked on."""
    if device.type != "cuda":
        for images, labels in pixels:
            yield Batch(normaliser(images.to(device)), labels.to(device))
        return
    side = torch.cuda.Stream(device)
    ready: Batch | None = None
    for images, labels in pixels:
        with torch.cuda.stream(side):
            batch = Batch(
                normaliser(images.to(device, non_blocking=True)),
                labels.to(device, non_blocking=True),
            )
            fetched = side.record_event()
        if ready is not None:
            yield ready
        main = torch.cuda.current_stream(device)
        main.wait_event(fetched)
        for x in batch:
            # the memory belongs to the side stream, which must not use it again before this one is done with it
            x.record_stream(main)
        ready = batch
    if ready is not None:
        yield ready
