"""Several runs at a time on one machine, each in a process of its own and with the threads of its configuration."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from ..training import preparation as setup
from ..training.config import TrainConfig
from ..training.loop import trainer as engine
from ..training.loop.signals import Stopped, StopSignals
from ..training.run.folder import RunFolder

# seconds between two looks at what has been asked of this process
LOOK_EVERY = 0.2
# of a run that was asked to stop, in the process that trained it
_stopped = False


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(runs: Mapping[Path, TrainConfig], jobs: int, say: Callable[[Path], None]) -> None:
    """Trains new runs, over those that are in their folders.

    Args:
        runs: configurations by folder.
        jobs: runs at a time; with one, this process trains them.
        say: is called with each folder once its run is finished.

    Raises:
        Stopped: Ctrl-C or SIGTERM; what was being trained has a checkpoint then.
        ValueError, OSError, CheckpointError, TrainingError: as the run that raised it; the others are stopped.
    """
    if jobs == 1:
        for path, run in runs.items():
            _train(path, run)
            say(path)
        return
    # this process alone hears Ctrl-C, so that a worker is never stopped twice
    context = multiprocessing.get_context("spawn")
    with StopSignals() as signals, ProcessPoolExecutor(jobs, context, _ignore_ctrl_c) as pool:
        waiting: dict[Future[None], Path] = {pool.submit(_work, path, run): path for path, run in runs.items()}
        try:
            while waiting and not signals.received:
                done, _ = wait(waiting, LOOK_EVERY, FIRST_COMPLETED)
                for future in done:
                    future.result()
                    say(waiting.pop(future))
        finally:
            if waiting:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
    if signals.received:
        raise Stopped(signals.received, "stopped")


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(path: Path, run: TrainConfig) -> None:
    """In a worker: a run, and none after one that was asked to stop."""
    global _stopped
    if _stopped:
        return
    try:
        # two progress bars would write over each other
        with contextlib.redirect_stderr(io.StringIO()):
            _train(path, run)
    except Stopped:
        _stopped = True


def _train(path: Path, run: TrainConfig) -> None:
    """Without a line an epoch."""
    folder = RunFolder(path)
    prepared = setup.prepare(run)
    with folder.locked(), contextlib.redirect_stdout(io.StringIO()):
        folder.create(run)
        engine.train(prepared, folder)
