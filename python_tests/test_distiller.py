"""Student, teacher and criterion in one module."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import semckd_kernels as sk
from semckd_kernels.logits import kd_loss

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5
LAYERS = {"student_layers": ["0", "1"], "teacher_layers": ["0", "1"]}


def net(width: int) -> nn.Sequential:
    first, second = nn.Conv2d(3, width, 3, 2), nn.Conv2d(width, 2 * width, 3, 2)
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5))


def distiller(**options: Any) -> sk.Distiller:
    torch.manual_seed(1)
    return sk.Distiller.from_example(net(4), net(6), IMAGES, batch_size=8, **LAYERS, **options)


def test_the_loss_is_that_of_its_parts() -> None:
    module = distiller(beta=3.0, ce_weight=0.5, kd_weight=0.25)
    loss, logits, terms, weight = module(IMAGES, labels=LABELS)

    def maps(network: nn.Module) -> list[Tensor]:
        first = network[0](IMAGES)  # type: ignore[index]
        return [first, network[1](first)]  # type: ignore[index]

    expected = module.criterion(maps(module.student), maps(module.teacher))  # type: ignore[misc]
    torch.testing.assert_close(terms["semckd"], expected.loss)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, LABELS))
    torch.testing.assert_close(terms["kd"], kd_loss(logits, module.teacher(IMAGES), 4.0))
    torch.testing.assert_close(loss, 0.5 * terms["ce"] + 0.25 * terms["kd"] + 3.0 * terms["semckd"])
    assert weight is not None
    assert not weight.requires_grad


def test_everything_that_trains_gets_a_gradient_and_the_teacher_none() -> None:
    module = distiller()
    module(IMAGES, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())


def test_the_teacher_is_nowhere_to_be_saved_and_stays_in_eval_mode() -> None:
    module = distiller()
    module.train()
    assert not module.teacher.training
    trained = [*module.student.parameters(), *module.criterion.parameters()]  # type: ignore[union-attr]
    assert {id(p) for p in module.parameters()} == {id(p) for p in trained}
    assert not [name for name in module.state_dict() if not name.startswith(("student.", "criterion."))]
    assert list(module.student.state_dict()) == list(net(4).state_dict())
    assert next(module.double().teacher.parameters()).dtype == torch.float64


def test_soft_labels_and_no_labels() -> None:
    module = distiller()
    soft = torch.rand(8, 5).softmax(1)
    found = module(IMAGES, labels=soft)
    torch.testing.assert_close(found.terms["ce"], F.cross_entropy(found.logits, soft))
    assert list(module(IMAGES).terms) == ["kd", "semckd"]
    loss, logits, terms, weight = module.eval()(IMAGES)
    assert (loss.item(), terms, weight) == (0.0, {}, None)
    torch.testing.assert_close(logits, module.student(IMAGES))


def test_a_copy_runs_on_its_own_networks() -> None:
    module = distiller()
    copied = copy.deepcopy(module)
    assert copied.teacher is module.teacher
    torch.testing.assert_close(copied(IMAGES, labels=LABELS).loss, module(IMAGES, labels=LABELS).loss)
    with torch.no_grad():
        copied.student[0].weight.zero_()  # type: ignore[index]
    assert copied(IMAGES, labels=LABELS).loss != module(IMAGES, labels=LABELS).loss
    # where an average of the parameters goes, the teacher does not
    assert next(copied.double().teacher.parameters()).dtype == torch.float32
    again = pickle.loads(pickle.dumps(copied))
    assert next(again.double().teacher.parameters()).dtype == torch.float64


def test_kd_alone() -> None:
    module = sk.Distiller(net(4), net(6), None, kd_standardize=True)
    loss, logits, terms, _ = module(IMAGES, labels=LABELS)
    torch.testing.assert_close(terms["kd"], kd_loss(logits, module.teacher(IMAGES), 4.0, standardize=True))
    torch.testing.assert_close(loss, terms["ce"] + terms["kd"])


def test_standardized_logits_do_not_see_scale_and_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    value = kd_loss(student, teacher, 2.0, standardize=True)
    torch.testing.assert_close(kd_loss(3 * student - 7, 0.1 * teacher + 2, 2.0, standardize=True), value)
    z = (student - student.mean(1, keepdim=True)) / student.std(1, correction=0, keepdim=True)
    z_t = (teacher - teacher.mean(1, keepdim=True)) / teacher.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(value, kd_loss(z, z_t, 2.0))
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, teacher, 2.0, True), student.clone().requires_grad_())
    flat = torch.zeros(2, 3, requires_grad=True)
    kd_loss(flat, torch.randn(2, 3), 4.0, standardize=True).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="teacher must be a module, got NoneType"):
        sk.Distiller(net(4), None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no module 'stage9'"):
        sk.Distiller.from_example(net(4), net(6), IMAGES, batch_size=8, student_layers=["stage9"], teacher_layers=["0"])

    class Nothing(nn.Module):
        def forward(self, images: Tensor) -> None:
            return None

    with pytest.raises(ValueError, match="the teacher must give logits"):
        sk.Distiller(net(4), Nothing(), None)(IMAGES)


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = nn.parallel.DistributedDataParallel(distiller(beta=1.0))
    half = slice(4 * rank, 4 * rank + 4)
    module(IMAGES[half], labels=LABELS[half]).loss.backward()
    gradients = {name: p.grad for name, p in module.module.named_parameters()}
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_mean_of_their_gradients(tmp_path: Path) -> None:
    mp.start_processes(_train, (str(tmp_path),), nprocs=2, start_method="spawn")
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected: dict[str, Tensor] = {}
    for half in (slice(0, 4), slice(4, 8)):
        module = distiller(beta=1.0)
        module(IMAGES[half], labels=LABELS[half]).loss.backward()
        for name, p in module.named_parameters():
            assert p.grad is not None
            expected[name] = expected.get(name, 0) + p.grad / 2
    for gradients in both:
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], msg=name)
