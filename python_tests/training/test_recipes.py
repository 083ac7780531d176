"""Optimizers, schedules, gradient clipping, label smoothing and the moving average, and how each of them resumes."""

from __future__ import annotations

import copy
import math
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from torch import nn
from training_nets import make_config, make_trainer, resume, signal_after, train

from semckd_kernels.training import models, optimizers, schedules
from semckd_kernels.training.config import RecipeConfig
from semckd_kernels.training.data import Batch
from semckd_kernels.training.loop.average import Average
from semckd_kernels.training.loop.evaluation import evaluate
from semckd_kernels.training.loop.step import TrainStep, make_autocast
from semckd_kernels.training.loop.timers import Timers
from semckd_kernels.training.run.folder import RunFolder

QUICK = ("--batch-size", "500", "--epochs", "2")


class TwoMatrices(nn.Module):
    """Parameters of one dimension and of two, one of which is spared by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.position = nn.Linear(3, 4), nn.Parameter(torch.ones(2, 3))

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def step(optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn_like(p)
    optimizer.step()


@pytest.mark.parametrize("name", [*optimizers.names(), "timm/lamb", "timm/adafactor", "timm/muon"])
def test_every_optimizer_steps_and_resumes(name: str) -> None:
    """Its state loads into one of another run, whose next step then has the same bits."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    # muon takes matrices alone
    nets = [nn.Linear(4, 6, bias=name != "muon") for _ in range(2)]
    recipe = RecipeConfig(optimizer=name, lr=0.01)
    made = [optimizers.make(net, recipe) for net in nets]
    nets[1].load_state_dict(nets[0].state_dict())
    before = nets[0].weight.clone()
    step(made[0])
    assert not torch.equal(nets[0].weight, before)
    assert bool(nets[0].weight.isfinite().all())
    nets[1].load_state_dict(nets[0].state_dict())
    # as from a file: torch itself would share the tensors
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    optimizers.check_state(made[1])
    for optimizer in made:
        step(optimizer)
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_options_reach_the_optimizers_that_have_them() -> None:
    net, recipe = nn.Linear(2, 2), RecipeConfig(optimizer="AdamW", betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    (group,) = optimizers.make(net, recipe).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"], group["fused"]) == ((0.8, 0.9), 1e-3, 0.2, True)
    (group,) = optimizers.make(net, RecipeConfig(optimizer="adamw")).param_groups
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    assert optimizers.fields("sgd") == ("momentum",)
    assert optimizers.fields("adamw") == ("betas", "eps")
    assert optimizers.fields("rmsprop") == ("momentum", "eps")


def test_biases_norms_and_what_a_network_names_are_spared() -> None:
    net = nn.Sequential(TwoMatrices(), nn.BatchNorm2d(4))
    spared, others = optimizers.make(net, RecipeConfig(optimizer="adamw", decay_all=False)).param_groups
    assert (spared["weight_decay"], others["weight_decay"]) == (0.0, 5e-4)
    assert [tuple(p.shape) for p in others["params"]] == [(4, 3)]
    assert len(spared["params"]) == 4


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (RecipeConfig(optimizer="timm/lamp"), "timm has no optimizer 'lamp'; the nearest are lamb"),
        (RecipeConfig(optimizer="timm/adahessian"), "optimizer 'timm/adahessian' needs second derivatives"),
        (RecipeConfig(optimizer="adamw", betas=(0.9,)), "optimizer 'adamw': "),
        (RecipeConfig(optimizer="muon"), "optimizer 'muon': Muon only supports 2D parameters"),
    ],
)
def test_what_an_optimizer_refuses_is_a_sentence(recipe: RecipeConfig, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        optimizers.make(nn.Linear(2, 2), recipe)
    assert "\n" not in str(refused.value)


def test_a_missing_timm_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "timm.optim", "timm.scheduler"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"optimizer 'timm/lamb': timm is not installed: run pip install \"timm\""):
        optimizers.make(nn.Linear(2, 2), RecipeConfig(optimizer="timm/lamb"))
    with pytest.raises(ValueError, match=r"schedule 'timm/cosine': timm is not installed: run pip install \"timm\""):
        schedules.make(RecipeConfig(schedule="timm/cosine"), 4)


def test_the_papers_recipe_has_its_bits() -> None:
    """SGD as torch has it, and the cosine without a lowest learning rate."""
    nets = [nn.Linear(5, 5) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    recipe = RecipeConfig(lr=0.05, momentum=0.9, weight_decay=5e-4, warm_up=0.1)
    made = optimizers.make(nets[0], recipe)
    plain = torch.optim.SGD(nets[1].parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    lr_of = schedules.make(recipe, 7)
    for update in range(70):
        schedules.set_lr(made, lr_of(update))
        warm = min((update + 1) / 7.0, 1.0)
        schedules.set_lr(plain, 0.05 * (warm * 0.5 * (1.0 + math.cos(math.pi * update / 70))))
        step(made)
        step(plain)
    assert torch.equal(nets[0].weight, nets[1].weight)


EPOCHS, UPDATES = 10, 5


@pytest.mark.parametrize("name", schedules.KNOWN)
def test_every_schedule(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    uses = schedules.fields(name)
    recipe = RecipeConfig(
        epochs=EPOCHS,
        lr=0.2,
        schedule=name,
        milestones=(4, 8) if "milestones" in uses else (),
        gamma=0.5,
        min_lr=0.01 if "min_lr" in uses else 0.0,
        warm_up=0.1,
    )
    lr_of = schedules.make(recipe, UPDATES)
    found = [lr_of(update) for update in range(EPOCHS * UPDATES)]
    # in any order: a run that resumes asks for the last one first
    again = schedules.make(recipe, UPDATES)
    assert [again(update) for update in (49, 7, 0)] == [found[49], found[7], found[0]]
    assert max(found) <= 0.2 * (1 + 1e-12)
    assert found[0] < found[4] * 0.9
    if "milestones" in uses:
        # timm's are an update earlier
        assert found[20:39] == pytest.approx([0.1] * 19)
        assert found[40:] == pytest.approx([0.05] * 10)
    elif name == "timm/constant":
        assert found[5:] == [0.2] * 45
    else:
        assert found[49] < found[25]
        assert found[49] >= recipe.min_lr


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("torch/CosineAnnealingLR", "cosine"), ("timm/cosine", "cosine"), ("torch/MultiStepLR", "step")],
)
def test_schedules_of_the_libraries_are_the_formulas(theirs: str, ours: str) -> None:
    if theirs.startswith("timm/"):
        pytest.importorskip("timm")
    values: dict[str, Any] = {"min_lr": 0.01} if ours == "cosine" else {"milestones": (4, 8), "gamma": 0.3}
    pair = [schedules.make(RecipeConfig(epochs=10, lr=0.2, schedule=name, **values), 5) for name in (theirs, ours)]
    a, b = ([lr(update) for update in range(50)] for lr in pair)
    assert a == pytest.approx(b, rel=1e-9)


class Halves(nn.Module):
    """Its loss is a product with the images, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, images: torch.Tensor, labels: torch.Tensor, teacher: None) -> tuple[torch.Tensor, torch.Tensor]:
        loss = (self.weight * images).sum()
        return loss, loss.detach()[None]


@pytest.mark.parametrize("scale", [None, 1024.0], ids=["fp32", "scaled"])
def test_gradients_are_clipped_in_their_own_units(scale: float | None) -> None:
    """A scaler is undone before, and a gradient that overflows skips the update."""
    module = Halves()
    optimizer = optimizers.make(module, RecipeConfig(lr=1.0, momentum=0.0, weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    train_step = TrainStep(module, None, optimizer, scaler, make_autocast(make_config().hardware), Timers(), 0.5)
    batch = Batch(torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.zeros(1))
    train_step(batch)
    torch.testing.assert_close(module.weight.detach(), torch.tensor([-0.3, 0.0, -0.4, 0.0]))
    train_step(batch._replace(images=0.01 * batch.images))
    torch.testing.assert_close(module.weight.detach(), torch.tensor([-0.33, 0.0, -0.44, 0.0]))
    if scale is not None:
        before = module.weight.detach().clone()
        train_step(batch._replace(images=torch.full((4,), 1e38)))
        assert torch.equal(module.weight.detach(), before)


def test_the_average_is_the_formula() -> None:
    net = models.build("resnet8", classes=3, in_channels=1, image_size=(16, 16), seed=0)
    average = Average(net, 0.5)
    expected = {name: value.clone() for name, value in net.net.state_dict().items()}
    for n, decay in enumerate((0.1, 2 / 11, 0.25)):
        with torch.no_grad():
            for value in net.net.state_dict().values():
                value += 1 if value.is_floating_point() else 3
        average.update(n)
        for name, value in net.net.state_dict().items():
            old = expected[name]
            expected[name] = decay * old + (1 - decay) * value if value.is_floating_point() else value.clone()
    found = average.student.net.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    # ((1 + 98) / (10 + 98) is above it
    average.update(98)
    torch.testing.assert_close(
        average.student.net.state_dict()["fc.weight"],
        0.5 * expected["fc.weight"] + 0.5 * net.net.state_dict()["fc.weight"],
        rtol=1e-6,
        atol=1e-6,
    )
    assert not average.student.training
    assert net.training


RECIPES = {
    "adamw": ["--optimizer", "adamw", "--lr", "0.01", "--no-decay-all", "--betas", "0.8,0.95", "--clip-grad", "0.5"],
    "ema": ["--ema", "0.9", "--label-smoothing", "0.1", "--accumulate", "2", "--min-lr", "0.001"],
    "timm": ["--optimizer", "timm/lamb", "--lr", "0.01", "--schedule", "timm/wsd", "--ema", "0.9"],
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("quick_report")
def test_a_stopped_run_resumes_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    assert train(tmp_path / "whole", *QUICK, *RECIPES[name]) == 0
    with monkeypatch.context() as patch:
        # in the second epoch of three steps; after a whole update
        signal_after(patch, signal.SIGTERM, 5)
        assert train(tmp_path / "run", *QUICK, *RECIPES[name]) == 143
    assert training_nets.state(tmp_path / "run")["epoch"] == 1
    assert resume(tmp_path / "run") == 0
    training_nets.same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.usefixtures("quick_report")
def test_the_average_is_what_a_run_hands_on(tmp_path: Path) -> None:
    """Its accuracy is the run's, its weights are those of a loaded run and of a teacher."""
    trainer = make_trainer(tmp_path / "run", make_config(**{"recipe.epochs": 2, "recipe.ema": 0.95}))
    summary = trainer.run()
    assert trainer.average is not None
    rows = trainer.folder.metrics()
    assert summary["accuracy"]["last"]["top1"] == rows[1]["test_top1"] != rows[1]["raw_top1"]
    average, raw = trainer.average.student, trainer.setup.student
    for net, name in ((average, "test_top1"), (raw, "raw_top1")):
        found = evaluate(net, trainer.setup.data.test_batches(), trainer.autocast)
        assert found is not None
        assert found.top1 == pytest.approx(rows[1][name])
    loaded = trainer.folder.load(which="last").student.net.state_dict()
    assert training_nets.differences(dict(loaded), dict(average.net.state_dict())) == []
    models.load_weights(raw, trainer.folder.last)
    assert training_nets.differences(dict(raw.net.state_dict()), dict(loaded)) == []


def test_label_smoothing_is_torchs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", make_config(**{"method.label_smoothing": 0.2}))
    batch = next(trainer.setup.data.train_batches(0))
    logits = trainer.setup.student(batch.images).logits.detach()
    loss, _ = trainer.distiller(batch.images, batch.labels, None)
    expected = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx(nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-4)


def test_the_state_of_other_parameters_is_refused() -> None:
    small, large = (optimizers.make(nn.Linear(2, n), RecipeConfig(optimizer="adamw")) for n in (2, 3))
    step(small)
    large.load_state_dict(small.state_dict())
    with pytest.raises(ValueError, match="the optimizer's state is of parameters of other shapes"):
        optimizers.check_state(large)


def test_an_average_is_part_of_the_course(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *QUICK, "--ema", "0.9") == 0
    assert "raw_top1" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert (tmp_path / "run" / "report.html").exists()
    assert RunFolder(tmp_path / "run").summary["accuracy"]["best"]["top1"] > 0
    assert resume(tmp_path / "run", "--ema", "0.5") == 2
    assert "--ema was 0.9 and is now 0.5" in capsys.readouterr().err
