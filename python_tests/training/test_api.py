"""Training from Python: the process is left as it was, signals reach their owner, and a run gives its student back."""

from __future__ import annotations

import dataclasses
import doctest
import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import training_nets
from torch import Tensor
from training_nets import make_config

from semckd_kernels import training
from semckd_kernels.training import config, presets, values
from semckd_kernels.training.api import configs, runs
from semckd_kernels.training.loop.evaluation import evaluate
from semckd_kernels.training.loop.signals import Stopped
from semckd_kernels.training.loop.step import make_autocast
from semckd_kernels.training.run.folder import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("quick_report")


def short(**changes: Any) -> config.TrainConfig:
    return make_config("dropout", **{"recipe.epochs": 1, "recipe.batch_size": 240, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, to be read only."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    training.train(short(**{"recipe.epochs": 2}), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert training_nets.train(out, "--epochs", "1", "--batch-size", "240", student="dropout") == 0
    return out


@pytest.fixture
def another_process() -> Iterator[Callable[[], list[Any]]]:
    """Everything process-wide is set as no run needs it; gives what of it can be read."""
    backends: Any = torch.backends
    operations = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)

    def seen() -> list[Any]:
        return [
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_float32_matmul_precision(),
            [operation.fp32_precision for operation in operations],
            (backends.cudnn.allow_tf32, backends.cudnn.deterministic, backends.cudnn.benchmark),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
            dist.is_initialized(),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            torch.is_grad_enabled(),
        ]

    before = seen()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.deterministic, backends.cudnn.benchmark = True, True
    yield seen
    torch.set_num_threads(before[0])
    torch.set_default_dtype(before[1])
    torch.set_default_device(None)
    torch.set_float32_matmul_precision(before[3])
    _, backends.cudnn.deterministic, backends.cudnn.benchmark = before[5]


def test_twice_in_a_process_and_once_in_a_thread(
    by_command: Path, another_process: Callable[[], list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bits of the command line, whatever the process is set to, and nothing of it is changed."""
    before = another_process()
    for name in ("a", "b"):
        training.train(short(), tmp_path / name, quiet=True)
        assert another_process() == before
    found: list[Any] = []

    def work() -> None:
        found.append(another_process())
        found.append(training.train(short(), tmp_path / "c", quiet=True))
        found.append(another_process())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == found[2]
    assert another_process() == before
    assert capsys.readouterr() == ("", "")
    training_nets.same_run(tmp_path / "a", tmp_path / "b")
    training_nets.same_run(tmp_path / "a", tmp_path / "c")
    assert found[1].folder == tmp_path / "c"
    training_nets.same_run(tmp_path / "a", by_command)


def test_who_mixes_torchs_names_for_a_format_keeps_the_mixture(tmp_path: Path) -> None:
    """Of the older name torch refuses to tell the value then."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        training.train(short(), tmp_path / "run", quiet=True)
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_a_process_group_of_the_callers_stays(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        training.train(short(), tmp_path / "run", quiet=True)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_ctrl_c_is_a_keyboard_interrupt_behind_a_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, out = short(**{"recipe.epochs": 2}), tmp_path / "run"
    with monkeypatch.context() as patch:
        training_nets.signal_after(patch, signal.SIGINT, 8)
        with pytest.raises(KeyboardInterrupt):
            training.train(wanted, out)
    assert "stopped at epoch 2, step 2 of 6; " in capsys.readouterr().err
    # a handler of the caller's is called, and what it leaves undone is an error
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        with monkeypatch.context() as patch:
            training_nets.signal_after(patch, signal.SIGTERM, 1)
            with pytest.raises(Stopped, match="stopped at epoch 2, step 3 of 6"):
                training.train(wanted, out, resume=True, quiet=True)
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    summary = training.train(wanted, out, resume=True, quiet=True)
    training_nets.same_run(whole, out)
    assert summary.last.epoch == 2


def test_a_summary_is_that_of_the_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is finished it is there at once."""
    written = json.loads((whole / "summary.json").read_text())
    capsys.readouterr()
    summary = training.train(short(**{"recipe.epochs": 2}), whole, resume=True)
    assert "is finished: best top-1 " in capsys.readouterr().out
    assert (summary.folder, summary.seconds) == (whole, written["seconds"])
    assert dataclasses.asdict(summary.best) == written["accuracy"]["best"]
    assert dataclasses.asdict(summary.last) == written["accuracy"]["last"]
    assert summary.values["counts"] == written["counts"]


def test_a_run_gives_its_student_back(whole: Path, tmp_path: Path) -> None:
    run = training.load(whole)
    folder = RunFolder(whole)
    loaded = folder.load()
    images = next(loaded.data.test_batches()).images
    assert isinstance(run.student, training_nets.Small)
    assert not any(module.training for module in run.student.modules())
    with torch.no_grad():
        logits: Tensor = run.student(images)
    assert torch.equal(logits, loaded.student(images).logits)
    # plain: no hook keeps a map
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.student.modules())
    assert (run.config, run.layers, run.metrics[1]["epoch"]) == (folder.config, ("a", "b"), 2)
    assert run.summary is not None
    assert run.epochs == run.summary.best.epoch
    # as its inputs are made
    assert run.images[:3] == (10, 1, (16, 16))
    assert loaded.data.denormalise(images).mul(255).round().unique().numel() > 2
    assert run.images == loaded.data.images
    last = training.load(whole, "last")
    assert last.epochs == 2
    found = evaluate(loaded.student, loaded.data.test_batches(), make_autocast(loaded.config.hardware))
    assert found is not None
    assert found.top1 == run.summary.best.top1
    # of a run of an earlier version, or one that has not come to its end: from the data
    shutil.copytree(whole, tmp_path / "older")
    (tmp_path / "older" / "summary.json").unlink()
    older = training.load(tmp_path / "older")
    assert (older.summary, older.images) == (None, run.images)


def test_a_student_needs_neither_teacher_nor_data(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    fields = {"student": {"name": "training_nets:grey", "layers": ["a", "b"]}, "method.name": "kd"}
    short = {"recipe.epochs": 1, "recipe.batch_size": 240, "logging.tensorboard": False, "hardware.device": "cpu"}
    source = {**fields, **short, "teacher": {"weights": tmp_path / "teacher"}}
    training.train(source, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "teacher")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    assert stored["teacher"]["layers"] == ["a", "b"]
    stored["data"]["root"] = "nowhere"
    path.write_text(json.dumps(stored))
    assert training.load(tmp_path / "run").config.data.root == "nowhere"
    with pytest.raises(ValueError, match="teacher': neither a file nor the folder of a run"):
        RunFolder(tmp_path / "run").load()


def test_what_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = short(**{"recipe.epochs": 2, "recipe.lr": 0.1})
    for call, message in (
        (lambda: training.train(other, whole), "holds a run already: give --resume to continue it or --overwrite"),
        (lambda: training.train(other, whole, resume=True), "another configuration: recipe.lr was 0.05 and is now 0.1"),
        (lambda: training.train({"student.name": "resnet8", "recipe.speed": 1}, tmp_path / "a"), "`recipe.seed`?"),
        (lambda: training.train({"student.name": "resnet8", "recipe": {"lr": "fast"}}, tmp_path / "a"), "type float"),
        (lambda: training.train({"recipe.lr": 0.1}, tmp_path / "a"), "a student is needed"),
        (lambda: training.train(tmp_path / "none.yaml", tmp_path / "a"), "none.yaml' cannot be read"),
        (lambda: training.train(short(**{"student.name": "resnet9"}), tmp_path / "a"), "no network 'resnet9'"),
        (lambda: training.train(short(**{"hardware.device": "toaster"}), tmp_path / "a"), "'toaster' cannot be used"),
        (lambda: training.load(tmp_path), "is not the folder of a run"),
        (lambda: training.load(whole, "worst"), "which must be 'best' or 'last', got 'worst'"),
        (lambda: training.load(whole, device="toaster"), "device 'toaster' cannot be used"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
            call()
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_from_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("preset: cifar100\nstudent: {name: vgg8}\nrecipe: {lr: 2e-2}\ndata: {root: images}\n")
    base = config.replace(presets.preset("cifar100", "vgg8"), **{"recipe.lr": 0.02, "data.root": f"{tmp_path}/images"})
    device = {"hardware.device": "cpu"}
    groups = {"preset": "cifar100", "student.name": "vgg8", "recipe": {"lr": 0.02}, "data": {"root": Path("images")}}
    for source in (file, str(file), groups, base.to_dict()):
        assert training.make_config(source, device) == base
    changed = training.make_config(groups, {**device, "recipe": {"lr": 0.5}, "recipe.milestones": [3, 5]})
    assert changed == config.replace(base, **{"recipe.lr": 0.5, "recipe.milestones": (3, 5)})
    with pytest.raises(ValueError, match=re.escape("recipe.gamma has no effect with schedule 'cosine'")):
        training.make_config({"student.name": "vgg8"}, {"recipe.gamma": 0.5})
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        training.trian  # noqa: B018


@pytest.mark.parametrize("module", [configs, runs, values], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert (result.attempted > 0, result.failed) == (True, 0)


@pytest.mark.skipif(not EXAMPLES.exists(), reason="runs in a checkout only")
def test_the_sweep_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sweep

    fields: dict[str, Any] = {"recipe.epochs": 1, "logging.tensorboard": False, "hardware.device": "cpu"}
    nets = {"student": "training_nets:grey", "teacher": "training_nets:wide", "student.layers": ["a", "b"]}
    first = sweep.sweep(tmp_path, betas=(20.0,), seeds=(0,), **nets, **fields)
    assert 0 < first[20.0] < 1
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert sorted(path.parent.name for path in kept) == ["beta20-seed0", "teacher"]
    found = sweep.sweep(tmp_path, betas=(20.0, 50.0), seeds=(0,), **nets, **fields)
    assert (list(found), found[20.0]) == ([20.0, 50.0], first[20.0])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    run = training.load(tmp_path / "beta50-seed0")
    assert (run.config.method.beta, run.config.data.train_fraction) == (50.0, 0.1)
    sys.modules.pop("sweep")
