"""The training loop: what it trains, what it counts, and what it says when it cannot continue."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_nets import losses, make_config, make_trainer, semckd

from semckd_kernels import SemCKD, SemCKDOutput
from semckd_kernels.cli import first_steps
from semckd_kernels.training import config, optimizers
from semckd_kernels.training import preparation as setup
from semckd_kernels.training.data import Batch
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.loop.evaluation import evaluate
from semckd_kernels.training.loop.records import TrainingError
from semckd_kernels.training.loop.step import make_autocast
from semckd_kernels.training.loop.timers import PARTS
from semckd_kernels.training.methods import standard
from semckd_kernels.training.run.folder import RunFolder
from semckd_kernels.training.run.rows import MILLISECONDS


class WrongGradient(SemCKD):
    """A criterion of the right value whose gradient is 1% too large."""

    def forward(self, *args: Any) -> SemCKDOutput:
        output = super().forward(*args)
        return output._replace(loss=output.loss + 0.01 * (output.loss - output.loss.detach()))


def test_training_learns(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", make_config("grey", **{"recipe.epochs": 6, "recipe.batch_size": 16}))
    summary = trainer.run()
    rows = trainer.folder.metrics()
    assert rows[0]["train_loss"] > 1.8
    assert rows[-1]["train_loss"] < 1.0
    assert summary["accuracy"]["best"]["top1"] > 0.7
    assert summary["accuracy"]["last"]["top1"] == rows[-1]["test_top1"]


def test_everything_trains_but_the_teacher(teacher: Path, tmp_path: Path) -> None:
    # a prepared one has other parameters
    trainer = make_trainer(tmp_path / "run", semckd(teacher, **{"hardware.prepare_teacher": False}))
    before = {name: p.clone() for name, p in trainer.distiller.named_parameters()}
    assert trainer.setup.teacher is not None
    before_teacher = copy.deepcopy(trainer.setup.teacher.state_dict())
    # its file's, not fresh ones
    stored = training_nets.state(teacher, "best")["student"]
    assert all(torch.equal(value, stored[name]) for name, value in trainer.setup.teacher.net.state_dict().items())
    trainer.run()
    assert [name for name, p in trainer.distiller.named_parameters() if torch.equal(p, before[name])] == []
    # running statistics included
    after = trainer.setup.teacher.state_dict()
    assert all(torch.equal(value, before_teacher[name]) for name, value in after.items())
    assert not any(p.requires_grad for p in trainer.setup.teacher.parameters())


def test_runs_of_one_seed_are_equal_and_of_two_are_not(teacher: Path, tmp_path: Path) -> None:
    names = ("first", "second", "third")
    for name, seed in zip(names, (0, 0, 1), strict=True):
        make_trainer(tmp_path / name, semckd(teacher, **{"recipe.seed": seed})).run()
    training_nets.same_run(tmp_path / "first", tmp_path / "second")
    with pytest.raises(AssertionError):
        training_nets.same_run(tmp_path / "first", tmp_path / "third")


def test_our_loss_trains_as_the_reference_does(teacher: Path, tmp_path: Path) -> None:
    found = [
        losses(make_trainer(tmp_path / f"{backend}", semckd(teacher, **{"method.backend": backend})))
        for backend in (None, "reference")
    ]
    agreement = first_steps.compare(*found)
    assert len(found[0]) == 23
    assert agreement.holds, agreement


def test_a_gradient_wrong_by_one_percent_is_found(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = losses(make_trainer(tmp_path / "right", semckd(teacher)))
    monkeypatch.setattr(standard, "SemCKD", WrongGradient)
    wrong = losses(make_trainer(tmp_path / "wrong", semckd(teacher)))
    assert wrong[0] == pytest.approx(right[0], rel=1e-6)
    assert not first_steps.compare(wrong, right).holds


def test_rows_are_those_of_a_plain_loop(teacher: Path, tmp_path: Path) -> None:
    """Losses, accuracy and attention of an epoch, means over images, by a loop that adds them up one by one."""
    run = semckd(teacher)
    trainer = make_trainer(tmp_path / "run", run)
    plain = setup.prepare(run)
    plain.student.train()
    plain.criterion.train()
    parameters = [*plain.student.parameters(), *plain.criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=0.9, weight_decay=5e-4)
    sums = dict.fromkeys(("loss", "ce", "kd", "semckd", "hits"), 0.0)
    attention = torch.zeros(2, 2, dtype=torch.float64)
    sizes = []
    for step, (images, labels) in enumerate(plain.data.train_batches(0)):
        optimizer.param_groups[0]["lr"] = trainer.lr(0, step)
        with torch.no_grad():
            output = plain.teacher(images)
        student = plain.student(images)
        loss = plain.criterion(student, output, labels)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        for name, value in (("loss", loss.total), *loss.terms.items()):
            sums[name] += value.item() * len(labels)
        sums["hits"] += (student.logits.argmax(1) == labels).sum().item()
        attention += loss.weight.double().sum(0)
        sizes.append(len(labels))
    # the last, smaller batch too: nothing is skipped
    assert sizes == [64] * 22 + [29]
    trainer.run()
    row = trainer.folder.metrics()[0]
    for name in ("loss", "ce", "kd", "semckd"):
        assert row[f"train_{name}"] == pytest.approx(sums[name] / 1437, rel=1e-5), name
    assert row["train_top1"] == pytest.approx(sums["hits"] / 1437)
    found = trainer.folder.attention()
    assert found is not None
    torch.testing.assert_close(found.weight[0], attention / 1437, rtol=1e-5, atol=1e-6)
    assert (found.student_layers, found.teacher_layers, found.epochs) == (["a", "b"], ["a", "b"], [1])


def test_a_skipped_first_update_leaves_no_trace() -> None:
    """fp16's scaler may skip the first one: momentum must not be what memory happens to hold."""
    p = torch.nn.Parameter(torch.ones(1000))
    optimizer = optimizers.make(torch.nn.ParameterList([p]), config.RecipeConfig())
    p.grad = torch.ones(1000)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(1000))
    assert not optimizer.state[p]["momentum_buffer"].any()


def test_steps_hold_the_losses_of_every_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", make_config(**{"recipe.epochs": 2, "logging.log_every": 7}))
    trainer.run()
    rows = trainer.folder.steps()
    assert [(row["epoch"], row["step"]) for row in rows] == [(e, s) for e in (1, 2) for s in range(1, 24)]
    # untrained: the cross-entropy of ten classes
    assert rows[0]["loss"] == rows[0]["ce"] == pytest.approx(math.log(10), abs=0.5)
    sizes = [64] * 22 + [29]
    mean = sum(row["loss"] * size for row, size in zip(rows[:23], sizes, strict=True)) / 1437
    assert mean == pytest.approx(trainer.folder.metrics()[0]["train_loss"], rel=1e-12)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """The mean over four batches of 16 is that over one of 64; 1,437 images leave two batches for the last update."""
    nets = []
    for name, changes in (
        ("accumulated", {"recipe.batch_size": 16, "recipe.accumulate": 4}),
        ("large", {"recipe.batch_size": 64}),
    ):
        run = make_config("without_norm", **{"recipe.epochs": 1, "recipe.momentum": 0.0, **changes})
        trainer = make_trainer(tmp_path / name, run)
        begin = [p.clone() for p in trainer.distiller.parameters()]
        # the last update's batches are of unequal size (16 and 13): left out here
        limit = 22 * run.recipe.accumulate
        batches = list(trainer.setup.data.train_batches(0))[:limit]
        trainer.steps = limit
        trainer.setup.data.train_batches = lambda epoch, step, batches=batches: iter(batches)  # type: ignore[method-assign]
        trainer.monitor = None
        assert len(list(trainer.epoch_steps())) == limit
        nets.append([p - b for p, b in zip(trainer.distiller.parameters(), begin, strict=True)])
    for accumulated, large in zip(*nets, strict=True):
        torch.testing.assert_close(accumulated, large, rtol=1e-4, atol=1e-7)


def test_the_last_group_of_an_epoch_is_updated_with_its_own_mean(tmp_path: Path) -> None:
    run = make_config("without_norm", **{"recipe.epochs": 1, "recipe.batch_size": 500, "recipe.accumulate": 2})
    trainer = make_trainer(tmp_path / "run", run)
    calls = []
    lrs = [trainer.lr(0, step) for step in range(3)]
    step = trainer.run_step
    trainer.run_step = lambda batch, share, update: (
        calls.append((len(batch.labels), share, update)),
        step(batch, share, update),
    )[1]
    trainer.run()
    assert calls == [(500, 0.5, False), (500, 0.5, True), (437, 1.0, True)]
    # learning rates are those of the updates
    assert lrs == [row["lr"] for row in trainer.folder.steps()]
    assert lrs[0] == lrs[1] > lrs[2]


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_a_loss_that_is_not_finite_stops_with_step_batch_and_term(log_every: int, tmp_path: Path) -> None:
    run = make_config("breaks_in_step_8", **{"logging.log_every": log_every, "logging.checkpoint_every": 4})
    trainer = make_trainer(tmp_path / "run", run)
    with pytest.raises(TrainingError) as stopped:
        trainer.run()
    assert "epoch 1, step 8 of 23 (batch 8 of the epoch, 64 images): the term 'ce' is nan (loss nan, ce nan)" in str(
        stopped.value
    )
    # the checkpoint is from before
    assert training_nets.state(trainer.folder.path)["step"] == 4
    assert len(trainer.folder.metrics()) == 0


def test_the_guilty_term_is_named(teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", semckd(teacher))
    semckd_term = trainer.setup.criterion.semckd
    assert semckd_term is not None
    forward = semckd_term.forward

    def broken(*maps: Any) -> SemCKDOutput:
        output = forward(*maps)
        return output._replace(loss=output.loss * float("inf"))

    semckd_term.forward = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"step 1 of 23 .* the term 'semckd' is inf \(loss inf, ce \d"):
        trainer.run()


def test_parts_of_a_step_add_up(teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", semckd(teacher, **{"recipe.epochs": 2}))
    summary = trainer.run()
    for row in trainer.folder.metrics():
        parts = [row[name] for name in MILLISECONDS]
        assert min(parts[:-1]) > 0
        assert parts[-1] >= -1e-6
        total = 1e3 * 1437 / row["images_per_second"] / 23
        assert sum(parts) == pytest.approx(total, rel=1e-6)
    assert list(summary["step_ms"]) == list(MILLISECONDS)
    assert len(MILLISECONDS) == len(PARTS) + 1


def test_backward_of_the_criterion_is_its_own_time(teacher: Path, tmp_path: Path) -> None:
    """The reference computes nothing ahead: with it most of the criterion's time is its backward pass."""
    trainer = make_trainer(tmp_path / "run", semckd(teacher, **{"method.backend": "reference"}))
    marks: list[str] = []
    trainer.timers.mark = marks.append  # type: ignore[method-assign]
    batch = next(trainer.setup.data.train_batches(0))
    trainer.run_step(batch)
    assert marks == ["teacher", "student", "criterion", "criterion", "student", "optimizer"]


def test_evaluation_counts_hits(tmp_path: Path) -> None:
    run = setup.prepare(make_config())
    batches = list(run.data.test_batches())
    run.student.train()
    found = evaluate(run.student, batches, make_autocast(run.config.hardware))
    assert run.student.training
    run.student.eval()
    with torch.no_grad():
        logits = torch.cat([run.student(b.images).logits for b in batches])
    labels = torch.cat([b.labels for b in batches])
    five = logits.argsort(1, descending=True)[:, :5]
    assert found is not None
    assert found.images == 360
    assert found.top1 == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert found.top5 == pytest.approx((five == labels[:, None]).any(1).float().mean().item())
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert evaluate(run.student, batches, make_autocast(run.config.hardware), stop=lambda: True) is None
    with pytest.raises(ValueError, match="no test images"):
        evaluate(run.student, [], make_autocast(run.config.hardware))


def test_evaluation_of_few_classes_and_of_fewer_than_five(tmp_path: Path) -> None:
    run = setup.prepare(make_config())
    three = [Batch(b.images[b.labels < 3], b.labels[b.labels < 3]) for b in run.data.test_batches()]
    net = run.student
    net.net.fc = torch.nn.Linear(8, 3)
    found = evaluate(net, three, make_autocast(run.config.hardware))
    assert found is not None
    assert found.top5 == 1.0


def test_compiled_networks_train_alike(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler's front end alone: its code generator takes half a minute."""
    compile_it, compiled = torch.nn.Module.compile, []

    def front_end(self: torch.nn.Module) -> None:
        compiled.append(self)
        compile_it(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", front_end)
    usual = losses(make_trainer(tmp_path / "usual", semckd(teacher)))
    trainer = make_trainer(tmp_path / "compiled", semckd(teacher, **{"hardware.compile": True}))
    assert losses(trainer) == pytest.approx(usual, rel=1e-4)
    assert compiled == [trainer.setup.student, trainer.setup.teacher]
    # a compiled network's checkpoint is like any other's
    names = [list(training_nets.state(tmp_path / name)["student"]) for name in ("usual", "compiled")]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware.channels_last": True},
        {"hardware.precision": "bf16"},
        {"hardware.precision": "bf16", "hardware.channels_last": True},
    ],
    ids=["channels_last", "bf16", "both"],
)
def test_formats_change_little(changes: dict[str, Any], teacher: Path, tmp_path: Path) -> None:
    usual = losses(make_trainer(tmp_path / "usual", semckd(teacher)))
    trainer = make_trainer(tmp_path / "changed", semckd(teacher, **changes))
    seen: list[torch.dtype | bool] = []
    last = changes.get("hardware.channels_last", False)
    trainer.setup.student.net.b.register_forward_hook(
        lambda m, args, out: seen.extend((out.dtype, args[0].is_contiguous(memory_format=torch.channels_last)))
    )
    changed = losses(trainer)
    assert torch.bfloat16 in seen if "hardware.precision" in changes else torch.bfloat16 not in seen
    assert (True in seen) == last
    assert changed[0] == pytest.approx(usual[0], rel=1e-2 if "hardware.precision" in changes else 1e-5)
    assert changed != usual
    # parameters and losses stay fp32
    assert all(p.dtype == torch.float32 for p in trainer.distiller.parameters())


def test_summary_holds_what_a_report_needs(teacher: Path, tmp_path: Path) -> None:
    prepared = setup.prepare(semckd(teacher))
    folder = RunFolder(tmp_path / "run")
    folder.create(prepared.config)
    engine.train(prepared, folder)
    summary = folder.summary
    counts = {"train_images": 1437, "test_images": 360, "steps_per_epoch": 23, "epochs": 1}
    assert summary["counts"].items() >= counts.items()
    assert summary["counts"]["student_parameters"] == prepared.student.parameter_count()
    plain = setup.prepare(semckd(teacher, **{"hardware.prepare_teacher": False})).teacher
    assert summary["counts"]["teacher_parameters"] == sum(p.numel() for p in plain.parameters())
    assert summary["teacher"] == prepared.teacher.prepared
    assert plain.prepared is None
    assert summary["layers"] == {
        "student": [{"name": "a", "shape": [4, 8, 8]}, {"name": "b", "shape": [8, 4, 4]}],
        "teacher": [{"name": "a", "shape": [6, 8, 8]}, {"name": "b", "shape": [12, 4, 4]}],
    }
    assert summary["environment"]["torch"] in torch.__version__
    assert folder.is_finished


def test_a_loaded_run_is_the_checkpoint(teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", semckd(teacher, **{"recipe.epochs": 2}))
    summary = trainer.run()
    for which in ("best", "last"):
        run = trainer.folder.load(which=which)
        found = evaluate(run.student, run.data.test_batches(), make_autocast(run.config.hardware))
        assert found is not None
        assert found.top1 == pytest.approx(summary["accuracy"][which]["top1"])
        assert run.teacher is not None
        assert not run.student.training
        assert not run.criterion.training
        stored = training_nets.state(trainer.folder.path, which)["criterion"]
        assert training_nets.differences(dict(run.criterion.state_dict()), dict(stored)) == []
    with pytest.raises(ValueError, match="which must be 'best' or 'last', got 'first'"):
        trainer.folder.load(which="first")
    with pytest.raises(ValueError, match="is not the folder of a run"):
        RunFolder(tmp_path).load()
