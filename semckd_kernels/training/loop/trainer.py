"""The training loop: steps, epochs, checkpoints, and where a run resumes after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import torch

from .. import methods, optimizers, schedules
from ..data import Batch, DataError
from ..flags import flag_name
from ..models import FeatureNet
from ..preparation import Setup
from ..run import checkpoint, mending, older_checkpoints, summary
from ..run.checkpoint import CheckpointError
from ..run.folder import RunFolder, fit
from ..run.history import History
from ..run.rows import RAW, TRAIN, loss_columns, metric_columns
from . import timers, trackers
from .average import Average
from .distiller import Distiller
from .divergence import Watch
from .evaluation import Evaluation, evaluate
from .graph import GraphedStep
from .image_watch import ImageWatch
from .monitor import Monitor
from .records import EpochSums, StepRecords, TrainingError, first_problem
from .signals import Stopped, StopSignals
from .step import TrainStep, make_autocast
from .timers import PARTS


class Trainer:
    """Trains a student, and its criterion, to the end of its recipe.

    A run is at ``(epoch, step)``, both counted from 0 and both those of the next batch; ``step`` equal to the steps of
    an epoch means that only the evaluation is left of it. Data, learning rate and parameters are functions of the place
    and of what a checkpoint holds, so that a run that resumes is the run that never stopped, bit for bit.

    Args:
        setup: of :func:`.setup.prepare`.
        folder: created.
        state: a checkpoint to resume from.
        quiet: print nothing.

    Raises:
        CheckpointError: the checkpoint does not fit the run.
    """

    def __init__(
        self, setup: Setup, folder: RunFolder, state: dict[str, Any] | None = None, quiet: bool = False
    ) -> None:
        self.quiet = quiet
        self.setup, self.folder, self.config, self.ranks = setup, folder, setup.config, setup.ranks
        trackers.check(self.config.logging.tracker)
        self.steps = setup.data.steps_per_epoch
        # an epoch
        self.updates = math.ceil(self.steps / self.config.recipe.accumulate)
        self.lr_of = schedules.make(self.config.recipe, self.updates)
        self.distiller = Distiller(setup.student, setup.criterion).train()
        self.optimizer = optimizers.make(self.distiller, self.config.recipe, self.config.hardware.cuda_graph)
        self.average = Average(setup.student, self.config.recipe.ema) if self.config.recipe.ema else None
        self.autocast = make_autocast(self.config.hardware)
        self.timers = timers.make(setup.device)
        self.epoch = self.step = 0
        self.best = {"epoch": 0, "top1": -1.0, "top5": -1.0}
        # why the networks of the best epoch cannot be read, where they are lost
        self.lost_best: str | None = None
        try:
            self._build(state)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if state is None:
                raise
            raise CheckpointError(f"the checkpoint in '{folder.path}' does not fit the run: {fit(error)}") from error
        self.since_checkpoint = 0
        # of a run, see run(); single steps go without
        self.monitor: Monitor | None = None
        self.began = 0.0
        self.signals = StopSignals()
        self.images = ImageWatch(setup)

    def _build(self, state: dict[str, Any] | None) -> None:
        hardware, recipe, setup = self.config.hardware, self.config.recipe, self.setup
        if state is not None:
            if self.average is not None:
                self.average.student.net.load_state_dict(state["student"])
            setup.student.net.load_state_dict(state["student" if self.average is None else "raw"])
            setup.criterion.load_state_dict(state["criterion"])
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=hardware.precision == "fp16")
        if hardware.compile:
            # in place: state dicts keep their names
            for net in (setup.student, setup.teacher):
                if net is not None:
                    net.compile()
        wrapped = self.ranks.wrap(self.distiller)
        step = TrainStep(
            wrapped, setup.teacher, self.optimizer, self.scaler, self.autocast, self.timers, recipe.clip_grad
        )
        self.run_step = GraphedStep(step, self.distiller, recipe.batch_size) if hardware.cuda_graph else step
        self.distiller.timers = self.timers
        columns, width = self.distiller.columns, len(self.distiller.columns) + self.distiller.attention_size
        self.sums = EpochSums(width, columns.index("hits"))
        losses = [name for name in columns if name != "hits"]
        self.terms = self.config.method.record.terms
        # the student cannot do without its own loss
        weights = {term.name: flag_name(f"method.{term.weight_name}") for term in self.terms if term.needs_teacher}
        self.watch = Watch(losses, setup.criterion.weights, weights)
        layers = methods.layer_names(setup.criterion, setup.student.layers, self._teacher_layers())
        metrics = metric_columns((term.name for term in self.terms), averaged=self.average is not None)
        self.history = History(self.steps, losses, layers, metrics, self.config.logging.steps)
        # a fetch waits for the end of an update
        self.records = StepRecords(width, self.config.logging.log_every + recipe.accumulate, setup.device)
        if state is not None:
            self._load(state)
        self.watch.start(self.distiller.named_parameters())

    def _load(self, state: dict[str, Any]) -> None:
        # the learning rate follows from the place; where it is a tensor, the one on the device stays
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(older_checkpoints.optimizer_state(state, self.distiller))
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        optimizers.check_state(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = int(state["epoch"]), int(state["step"]), dict(state["best"])
        if not (0 <= self.epoch <= self.config.recipe.epochs and 0 <= self.step <= self.steps):
            raise ValueError(f"there is no epoch {self.epoch + 1}, step {self.step}")
        if "history" in state:
            self.history.load_state(state["history"], self.epoch, self.step)
        else:
            self.history.read(self.folder, self.epoch, self.step)
        if done := self.epoch * self.steps + self.step:
            # that of the last step, as where the run never stopped
            schedules.set_lr(self.optimizer, self.lr(*divmod(done - 1, self.steps)))
        # checkpoints of earlier versions have none
        if "watch" in state:
            self.watch.load_state(state["watch"])
        own = state["ranks"][self.ranks.rank]
        self.sums.load_state(own["sums"])
        checkpoint.set_rng_state(own["rng"])

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the summary, on all processes but the first an empty one.

        Raises:
            TrainingError: the loss is not finite.
            CheckpointError: a checkpoint cannot be written.
            Stopped: a signal came, and the checkpoint is written.
        """
        with self.folder.locked() if self.ranks.is_main else nullcontext():
            return self._run()

    def _run(self) -> dict[str, Any]:
        resumed = bool(self.epoch or self.step)
        self.ranks.on_main(self._open_monitor, TrainingError)
        if resumed:
            self.ranks.on_main(self._mend_checkpoints, CheckpointError)
        try:
            with self.signals:
                while self.epoch < self.config.recipe.epochs:
                    for _ in self.epoch_steps():
                        pass
                    self._finish_epoch()
                return self._summary() if self.ranks.is_main else {}
        finally:
            if self.monitor is not None:
                self.monitor.close()
            self.setup.data.close()

    def _open_monitor(self) -> None:
        place = self.epoch, self.step
        self.monitor = Monitor(self.folder, self.config, self.history, self.lr, *place, quiet=self.quiet)

    def _summary(self) -> dict[str, Any]:
        values = summary.make(self.setup, self.history.epochs, self.best, self.watch.warnings)
        if self.images.reasons:
            values["counts"]["broken_images"] = len(self.images.reasons)
        return values

    def lr(self, epoch: int, step: int) -> float:
        """The learning rate of a step, without asking the device."""
        return self.lr_of(self._update(epoch, step))

    def _update(self, epoch: int, step: int) -> int:
        """The update of the parameters that a step is a part of, counted from 0."""
        return epoch * self.updates + step // self.config.recipe.accumulate

    def epoch_steps(self) -> Iterator[None]:
        """The steps that are left of this epoch, with all that surrounds them; one a turn."""
        recipe = self.config.recipe
        self.distiller.train()
        self.began = time.perf_counter()
        batches = iter(self.setup.data.train_batches(self.epoch, self.step))
        while self.step < self.steps:
            self.timers.start()
            batch = self._next(batches)
            batch = batch._replace(images=self.setup.images(batch.images))
            self.timers.mark("data")
            group = self.step - self.step % recipe.accumulate
            update = (self.step + 1) % recipe.accumulate == 0 or self.step + 1 == self.steps
            share = 1.0 / min(recipe.accumulate, self.steps - group)
            schedules.set_lr(self.optimizer, self.lr(self.epoch, self.step))
            record = self.run_step(batch, share, update)
            if update and self.average is not None:
                self.average.update(self._update(self.epoch, self.step))
                self.timers.mark("optimizer")
            self.records.add(record, len(batch.labels))
            self.step += 1
            self.since_checkpoint += 1
            if self.monitor is not None:
                self.monitor.step_done()
            if update:
                self._after_update()
            yield

    def _after_update(self) -> None:
        """Fetches, saves and stops where it is time; gradients that are not yet used are in no checkpoint."""
        every = self.config.logging.checkpoint_every
        at_end = self.step == self.steps
        due = every is not None and self.since_checkpoint >= every and not at_end
        # several processes look for signals only where they talk to each other anyway
        alone_and_asked = self.ranks.world_size == 1 and (self.signals.received or self.images.must_stop)
        if due or at_end or alone_and_asked or len(self.records) >= self.config.logging.log_every:
            asked = self._fetch()
            if asked:
                self._stop(asked)
            if due:
                self._save()

    def _fetch(self) -> int:
        """Brings losses and times to the host and looks at them; returns the signal that any process has received."""
        rows, sizes = self.records.take()
        first = self.step - len(sizes)
        columns = self.distiller.columns
        self.sums.add(rows, sizes, self.timers.collect())
        now = time.perf_counter()
        self.sums.seconds += now - self.began
        self.began = now
        if self.monitor is not None:
            losses = rows[:, [n for n, name in enumerate(columns) if name != "hits"]]
            self.monitor.fetched(self.epoch, first, losses, self._images_per_second())
            self._warn(self.watch.losses(self.epoch, first, losses))
        problem = first_problem(columns, rows)
        own = [problem is not None, self.signals.received, self.images.must_stop]
        flags = self.ranks.max(torch.tensor(own, dtype=torch.float32))
        if flags[0]:
            self._not_finite(first, problem, sizes)
        if flags[2] and (found := self.images.look()):
            self._stop_at(found)
        return int(flags[1])

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except DataError as error:
            self._fail_at(error)

    def _fail_at(self, error: DataError) -> NoReturn:
        """Saves where that is possible: alone, with no gradients that wait for an update."""
        whole = self.step % self.config.recipe.accumulate == 0 or self.step == self.steps
        if self.ranks.world_size > 1 or not whole:
            raise TrainingError(f"{error}; --resume continues from the last checkpoint") from error
        if len(self.records):
            self._fetch()
        self._stop_at(str(error))

    def _stop_at(self, problem: str) -> NoReturn:
        self._save()
        place = f"'{self.folder.last}' holds everything up to epoch {self.epoch + 1}, step {self.step} of {self.steps}"
        raise TrainingError(f"{problem}; {place}: --resume continues")

    def _warn(self, *found: str | None) -> None:
        """Above the progress bar, of the first process."""
        for text in found:
            if text is not None and self.monitor is not None:
                self.monitor.say(f"warning: {text}")

    def _not_finite(self, first: int, problem: tuple[int, str, str] | None, sizes: list[int]) -> NoReturn:
        """Names the step that was the first of all processes: gradients carry it to the others."""
        own = None if problem is None else (problem[0], self.ranks.rank, problem, sizes[problem[0]])
        n, rank, (_, what, terms), images = min(found for found in self.ranks.gather(own) if found is not None)
        last = self.terms[-1]
        lower = f" or a lower {last.weight_name}" if last.needs_teacher else ""
        step, process = first + n + 1, f" of process {rank}" if self.ranks.world_size > 1 else ""
        raise TrainingError(
            f"the loss is not finite at epoch {self.epoch + 1}, step {step} of {self.steps} (batch {step} of the "
            f"epoch{process}, {images} images): {what} ({terms}); try a lower learning rate{lower}"
        )

    def _stop(self, number: int) -> NoReturn:
        self._save()
        place = f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"
        raise Stopped(
            number, f"stopped at {place}; '{self.folder.last}' holds everything up to there: --resume continues"
        )

    def _images_per_second(self) -> float:
        return self.ranks.world_size * self.sums.images / max(self.sums.seconds, 1e-9)

    def _finish_epoch(self) -> None:
        """Evaluation, rows, best and last checkpoint."""
        begin = time.perf_counter()
        self.ranks.share_buffers(self.distiller)
        found = self._evaluate(self.setup.student)
        raw = {}
        if self.average is not None:
            self.ranks.share_buffers(self.average.student)
            raw, found = {RAW: found.top1}, self._evaluate(self.average.student)
        if problem := self.images.look():
            self._stop_at(problem)
        row, attention = self._row(found, time.perf_counter() - begin)
        row |= raw
        is_best = found.top1 > self.best["top1"]
        if is_best:
            self.best = {"epoch": self.epoch + 1, "top1": found.top1, "top5": found.top5}
        self.history.add_epoch(row, attention)
        if self.monitor is not None:
            parameters = self.distiller.named_parameters()
            self._warn(self.watch.test_loss(self.epoch, found.loss), self.watch.parameters(self.epoch, parameters))
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = EpochSums(len(self.sums.values), self.sums.hits)
        self._save(is_best)
        if self.monitor is not None:
            self.monitor.epoch_done(is_best)
        asked_now = int(self.ranks.max(torch.tensor([float(self.signals.received)]))[0])
        if asked_now and self.epoch < self.config.recipe.epochs:
            self._stop(asked_now)

    def _evaluate(self, student: FeatureNet) -> Evaluation:
        alone = self.ranks.world_size == 1
        batches = (b._replace(images=self.setup.images(b.images)) for b in self.setup.data.test_batches())
        asked = (lambda: bool(self.signals.received)) if alone else (lambda: False)
        try:
            found = evaluate(student, batches, self.autocast, self.ranks, asked)
        except DataError as error:
            self._fail_at(error)
        if found is None:
            self._stop(self.signals.received)
        return found

    def _row(self, found: Evaluation, evaluation_s: float) -> tuple[dict[str, float], list[float]]:
        """The epoch's row of metrics.csv, and its mean attention, over all processes."""
        columns, sums = self.distiller.columns, self.sums
        total = self.ranks.sum(torch.cat([sums.values, torch.tensor([float(sums.images)], dtype=torch.float64)]))
        means = (total[:-1] / total[-1]).tolist()
        named = dict(zip(columns, means, strict=False))
        row: dict[str, float] = {"epoch": self.epoch + 1, "lr": self.lr(self.epoch, self.steps - 1)}
        for name in loss_columns(term.name for term in self.terms):
            row[name] = named.get(name.removeprefix(TRAIN), math.nan)
        row |= {"train_top1": named["hits"], "test_top1": found.top1, "test_top5": found.top5, "test_loss": found.loss}
        row |= {"images_per_second": float(total[-1]) / sums.seconds, "seconds": sums.seconds + evaluation_s}
        parts = {part: ms / sums.steps for part, ms in sums.parts_ms.items()}
        if self.config.hardware.cuda_graph:
            # one launch, which is none of the parts
            parts |= {part: math.nan for part in PARTS if part != "data"}
        row |= {f"{part}_ms": ms for part, ms in parts.items()}
        row["other_ms"] = 1e3 * sums.seconds / sums.steps - sum(ms for ms in parts.values() if ms == ms)
        return row, means[len(columns) :]

    def _save(self, is_best: bool = False) -> None:
        """Writes the last checkpoint, and before it the best one: a whole checkpoint as well, which resumes."""
        own = {"rng": checkpoint.rng_state(), "sums": self.sums.state()}
        values = {
            # of the network itself: loads into one that knows nothing of feature maps
            "student": (self.setup if self.average is None else self.average).student.net.state_dict(),
            "criterion": self.setup.criterion.state_dict(),
            "config": self.config.to_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": dict(self.best),
            "watch": self.watch.state(),
            "history": self.history.state(),
            "ranks": self.ranks.gather(own),
        }
        if self.average is not None:
            # what training continues from
            values["raw"] = self.setup.student.net.state_dict()
        paths = [self.folder.best, self.folder.last] if is_best else [self.folder.last]
        # launchers would end it in mid-file where another process left before it is whole
        self.ranks.on_main(lambda: checkpoint.save(paths[0], values, *paths[1:]), CheckpointError)
        if self.monitor is not None:
            self.monitor.sync()
        self.since_checkpoint = 0
        self.lost_best = None if is_best else self.lost_best

    def _mend_checkpoints(self) -> None:
        self.lost_best = mending.mend(self.folder, self.config, (self.epoch, self.step), self.best)

    def _teacher_layers(self) -> tuple[str, ...]:
        return self.setup.teacher.layers if self.setup.teacher is not None else ()


def train(setup: Setup, folder: RunFolder, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains to the end, writes summary and report, and returns the summary; see :class:`Trainer`."""
    return finish(Trainer(setup, folder, state))


def finish(trainer: Trainer) -> dict[str, Any]:
    """As :func:`train`, of a trainer that is ready."""
    if not trainer.ranks.is_main:
        return trainer.run()
    with trainer.folder.locked():
        found = trainer.run()
        trainer.folder.write_summary(found)
        write_report(trainer.folder)
    return found


def write_report(folder: RunFolder) -> None:
    """The HTML report, where its packages are installed."""
    try:
        from ..report import report
    except ImportError:
        return
    report.write(folder)
