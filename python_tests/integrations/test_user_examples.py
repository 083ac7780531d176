"""The examples run on tiny data and compute what plain code does; each is short."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
# of the user's own code, without imports, docstrings, comments and what the examples share
MOST_LINES = 40
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="runs in a checkout only"),
    pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed"),
]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name: str) -> Any:
    return importlib.import_module(name)


def own_lines(path: Path) -> int:
    """Lines of statements."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.expr) or (isinstance(node, ast.stmt) and not constant):
            first, last = (node.lineno, node.lineno) if hasattr(node, "body") else (node.lineno, node.end_lineno)
            found = set(range(first, (last or first) + 1))
            lines = lines - found if isinstance(node, (ast.Import, ast.ImportFrom)) else lines | found
    return len(lines)


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert 5 <= own_lines(path) <= MOST_LINES


def test_three_forms_of_a_plain_loop_are_one() -> None:
    losses = [example("plain_loop").train(form, 3) for form in ("distiller", "semckd", "selfa")]
    assert losses[0][2] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shards on the CPU, where torch would take the GPU")
def test_a_sharded_criterion_trains_as_a_whole_one(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sharded = example("fsdp2").train(3)
    finally:
        dist.destroy_process_group()
    assert sharded == pytest.approx(example("plain_loop").train("distiller", 3), rel=1e-5)


def test_feature_pyramids_of_detectors() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    first, second = example("detection").train(2)
    assert second < first


def test_other_methods_are_plain_code() -> None:
    methods = example("other_methods")
    torch.manual_seed(0)
    shapes = [(3, 6, 4), (5, 3, 2)]
    projected = [[torch.randn(4, *s, dtype=torch.float64, requires_grad=True) for s in shapes] for _ in range(2)]
    target = [[torch.randn(4, *s, dtype=torch.float64) for s in shapes] for _ in range(2)]
    query, key = (torch.randn(4, 2, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def errors(i: int, j: int) -> Tensor:
        return (projected[i][j] - target[i][j]).square().flatten(1).mean(1)

    energy = torch.einsum("bsd,btd->bst", key, query) / 7**0.5
    weight = energy.exp() / energy.exp().sum(1, keepdim=True)
    pairs = [
        (methods.fitnet(projected, target, 1, 0), errors(1, 0).mean()),
        (methods.levels(projected, target, [0.25, 2.0]), 0.25 * errors(0, 0).mean() + 2.0 * errors(1, 1).mean()),
        (
            methods.afd(projected, target, query, key),
            sum((weight[:, i, j] * errors(i, j)).mean() for i in range(2) for j in range(2)),
        ),
    ]
    inputs = [*projected[0], *projected[1], query, key]
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain)
        gradients = (
            torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True) for loss in (ours, plain)
        )
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected)


def test_torchdistill_from_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchdistill", reason="torchdistill is not installed")
    from torchdistill.common import yaml_util
    from torchdistill.models.registry import get_model

    script = runpy.run_path(str(EXAMPLES / "torchdistill" / "train.py"))
    config = yaml_util.load_yaml_file(str(EXAMPLES / "torchdistill" / "semckd.yaml"))
    config["train"]["num_epochs"] = 1
    config["train"]["train_data_loader"]["kwargs"]["batch_size"] = 4
    monkeypatch.setattr(yaml_util, "load_yaml_file", lambda path: config)
    script["main"]("semckd.yaml", str(tmp_path / "student.pt"), 1)
    get_model("resnet20", num_classes=10).load_state_dict(torch.load(tmp_path / "student.pt"))


def test_timm_gets_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that makes its task as timm's train.py does."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    tasks = importlib.import_module("timm.task")
    monkeypatch.setattr(tasks, "FeatureDistillationTask", tasks.FeatureDistillationTask)
    teacher = timm.create_model("test_resnet", num_classes=10)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm\n"
        "from timm.task import FeatureDistillationTask\n"
        "argv = sys.argv[1:]\n"
        "task = FeatureDistillationTask(student_model=timm.create_model('test_resnet', num_classes=10),\n"
        "    teacher_model='test_resnet', criterion=None, distill_loss_weight=None, task_loss_weight=None,\n"
        "    student_feature_dim=None, teacher_feature_dim=None, device=None, dtype=None, verbose=False)\n"
    )
    flags = ["--teacher-weights", str(tmp_path / "teacher.pt"), "-b", "4", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["timm_train.py", str(script), *flags])
    made: dict[str, Any] = {}
    run_path = runpy.run_path
    monkeypatch.setattr(runpy, "run_path", lambda *args, **options: made.update(run_path(*args, **options)))
    run_path(str(EXAMPLES / "timm_train.py"), run_name="__main__")
    assert made["argv"] == ["--epochs", "1", "--batch-size", "4"]
    loaded = made["task"].trainable_module.teacher.teacher.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in teacher.state_dict().items())


def test_modelopt() -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    losses, student = example("modelopt_distill").train(3)
    assert losses[2] < losses[0]
    assert student.state_dict().keys() == example("shared").Net(8).state_dict().keys()
