"""The task for timm, driven through the calls of timm's own train.py."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import semckd_kernels as sk
from semckd_kernels.logits import kd_loss

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)


def task(student: str = "test_resnet", teacher: str = "test_resnet", **options: Any) -> Any:
    import timm

    from semckd_kernels.integrations.timm import SemCKDTask

    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in teacher else {}
    nets = [timm.create_model(student, num_classes=5), timm.create_model(teacher, num_classes=5, **size)]
    return SemCKDTask(*nets, batch_size=4, verbose=False, **options).train()


def test_the_loss_is_that_of_its_parts() -> None:
    module = task(task_loss_weight=0.5, kd_weight=2.0, distill_loss_weight=3.0)
    net = module.trainable_module
    # the teacher sees images with its own normalisation
    net.teacher.teacher.mean_kd += 0.25
    of_teacher = net.teacher.teacher.normalize_input(IMAGES, net.teacher.mean, net.teacher.std)
    assert not torch.equal(of_teacher, IMAGES)
    twin, teacher = copy.deepcopy(net), net.teacher.teacher.model
    with torch.no_grad(), sk.FeatureMaps(twin.student) as student_maps, sk.FeatureMaps(teacher) as teacher_maps:
        logits, teacher_logits = twin.student(IMAGES), teacher(of_teacher)
        semckd = twin.criterion(student_maps.take(), teacher_maps.take()).loss
    out = module(IMAGES, LABELS)
    expected = 0.5 * F.cross_entropy(logits, LABELS) + 2 * kd_loss(logits, teacher_logits, 4.0) + 3 * semckd
    torch.testing.assert_close(out["loss"], expected)
    torch.testing.assert_close(out["output"], logits)
    torch.testing.assert_close(out["semckd_loss"], semckd)
    assert not [m for m in teacher.modules() if m.training]


def test_optimizer_clipping_average_and_checkpoint() -> None:
    from timm.optim import create_optimizer_v2

    module = task()
    module.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(module.get_trainable_module(), opt="sgd", lr=0.1, layer_decay=0.9)
    before = copy.deepcopy(module.trainable_module.state_dict())
    module(IMAGES, LABELS)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(module.get_clip_parameters(), 1.0)
    optimizer.step()
    module.update_ema(0)
    after = module.trainable_module.state_dict()
    assert not [name for name, p in module.trainable_module.named_parameters() if p.grad is None]
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"student", "criterion"}
    assert len(module.get_clip_parameters(exclude_head=True)) == len(module.get_clip_parameters()) - 2
    fresh = task()
    fresh.setup_ema(decay=0.5)
    for ema in (False, True):
        state = module.get_checkpoint_state(ema=ema)
        suffix = "_ema" if ema else ""
        assert state[f"state_dict{suffix}"].keys() == module.get_eval_model().state_dict().keys()
        fresh.load_checkpoint_state(state[f"state_dict{suffix}"], state[f"task_state{suffix}"], ema=ema)
    again = fresh.trainable_module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in again.items())
    assert module.eval().get_eval_model()(IMAGES).shape == (4, 5)


def test_tokens_of_a_transformer() -> None:
    module = task(teacher="test_vit")
    teacher_maps = module.trainable_module._attached[1]
    module(IMAGES, LABELS)
    assert teacher_maps.prefix_tokens == module.trainable_module.teacher.teacher.model.num_prefix_tokens == 1
    assert module.trainable_module.criterion.t_len == len(teacher_maps.layers)


def test_networks_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, **options: compiled.append((net, options)))
    module = task()
    names = list(module.get_eval_model().state_dict())
    assert module.compile(backend="eager") is module.get_eval_model()
    assert [net for net, _ in compiled] == [module.trainable_module.student, module.trainable_module.teacher]
    assert list(module.get_eval_model().state_dict()) == names
