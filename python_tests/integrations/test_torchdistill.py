"""The plug-in for torchdistill: its own distillation box, made from the YAML of the example."""

from __future__ import annotations

import copy
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import semckd_kernels as sk

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torchdistill") is None, reason="torchdistill is not installed"),
    pytest.mark.skipif(not EXAMPLES.exists(), reason="runs in a checkout only"),
]
BATCH = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def box(change: Callable[[Any], None] = lambda train: None, distributed: bool = False) -> Any:
    """The example's, with narrow networks."""
    sys.path[:0] = [str(EXAMPLES), str(Path(__file__).parent)]
    from shared import Net
    from torchdistill.common import yaml_util
    from torchdistill.models.registry import MODEL_DICT

    torch.manual_seed(0)
    train = runpy.run_path(str(EXAMPLES / "torchdistill" / "train.py"))
    config = yaml_util.load_yaml_file(str(EXAMPLES / "torchdistill" / "semckd.yaml"))
    MODEL_DICT["Net"] = Net
    config["models"]["student_model"] = {"key": "Net", "kwargs": {"width": 4}}
    config["models"]["teacher_model"] = {"key": "Net", "kwargs": {"width": 6}}
    wrapper = config["train"]["student"]["auxiliary_model_wrapper"]
    wrapper["kwargs"] = {"batch_size": 8, "s_n": [4, 8, 16], "t_n": [6, 12, 24]}
    change(config["train"])
    made = train["make"](config, distributed)
    made.pre_epoch_process(epoch=0)
    return made


def only_semckd(train: Any) -> None:
    terms = train["criterion"]["kwargs"]["sub_terms"]
    del terms["ce"], terms["kd"]
    terms["semckd"]["weight"] = 1.0


def maps(net: nn.Module) -> list[Tensor]:
    with torch.no_grad(), sk.FeatureMaps(net, ["layer1", "layer2", "layer3"]) as features:
        net(BATCH[0])
        return features.take()


def test_the_loss_is_semckd_and_the_teacher_is_in_eval_mode() -> None:
    made = box(only_semckd)
    criterion = copy.deepcopy(made.student_model.semckd)
    student, teacher = copy.deepcopy(made.student_model.student_model), made.teacher_model.teacher_model
    loss = made.forward_process(*BATCH)
    assert made.student_model.training
    assert not [m for m in made.teacher_model.modules() if m.training]
    assert torch.equal(loss, criterion(maps(student), maps(teacher)).loss)


def test_student_and_criterion_train_and_the_teacher_does_not() -> None:
    made = box()
    before = {name: p.clone() for name, p in made.student_model.named_parameters()}
    teacher = copy.deepcopy(made.teacher_model.state_dict())
    made.post_forward_process(loss=made.forward_process(*BATCH))
    assert not [name for name, p in made.student_model.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in before if name.startswith("semckd.")]
    assert all(torch.equal(value, teacher[name]) for name, value in made.teacher_model.state_dict().items())


def test_a_checkpoint_is_the_student() -> None:
    from shared import Net

    wrapper, other = box().student_model, Net(4)
    other.load_state_dict(wrapper.state_dict())
    with torch.no_grad():
        other.fc.bias += 1
    wrapper.load_state_dict(other.state_dict())
    assert torch.equal(wrapper.student_model.fc.bias, other.fc.bias)


def test_what_is_missing_is_named() -> None:
    def without_wrapper(train: Any) -> None:
        only_semckd(train)
        del train["student"]["auxiliary_model_wrapper"]
        train["student"]["forward_hook"]["output"] = ["layer1"]

    def in_training_mode(train: Any) -> None:
        only_semckd(train)
        del train["teacher"]["auxiliary_model_wrapper"]
        train["teacher"]["forward_hook"]["output"] = ["layer1"]

    def without_hook(train: Any) -> None:
        only_semckd(train)
        train["teacher"]["forward_hook"]["output"] = ["teacher_model.layer1"]

    with pytest.raises(ValueError, match=r"needs 'auxiliary_model_wrapper: \{key: Student4SemCKD"):
        box(without_wrapper).forward_process(*BATCH)
    with pytest.raises(ValueError, match=r"needs 'auxiliary_model_wrapper: \{key: Teacher4SemCKD, .* of the teacher"):
        box(in_training_mode).forward_process(*BATCH)
    with pytest.raises(ValueError, match=r"teacher_module_paths: 'teacher_model\.layer2' must be in forward_hook"):
        box(without_hook).forward_process(*BATCH)
