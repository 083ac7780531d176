"""``semckd`` as a user meets it: every data set, evaluation, information, and bad input."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_files import cifar_split, write_cifar_python, write_image_folders
from training_nets import LAYERS, train

from semckd_kernels.cli import commands as cli
from semckd_kernels.training import models
from semckd_kernels.training.run.folder import RunFolder


def distil_on(data: list[str], out: Path, count: int) -> None:
    """A teacher, and a student distilled from it, of RGB images."""
    flags = [*LAYERS, *data, "--device", "cpu", "--threads", "1", "--epochs", "1", "--no-tensorboard"]
    assert cli.main(["train", "--student", "training_nets:rgb", *flags, "--out", str(out / "teacher")]) == 0
    distilled = ["--teacher-weights", str(out / "teacher"), "--method", "semckd"]
    student = ["train", "--student", "training_nets:rgb", *flags, *distilled, "--out", str(out / "student")]
    assert cli.main(student) == 0
    run = RunFolder(out / "student")
    assert run.summary["counts"]["train_images"] == count
    row = run.metrics()[0]
    assert row["train_loss"] == pytest.approx(
        row["train_ce"] + row["train_kd"] + run.config.method.beta * row["train_semckd"], rel=1e-5
    )
    attention = run.attention()
    assert attention is not None
    torch.testing.assert_close(attention.weight.sum(2), torch.ones(1, 2, dtype=torch.float64), rtol=1e-5, atol=0)


def test_cifar100_in_its_official_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar_python(tmp_path, cifar_split(200, seed=0), cifar_split(100, seed=1))
    distil_on(["--preset", "cifar100", "--data-root", str(tmp_path)], tmp_path / "runs", 200)
    run = RunFolder(tmp_path / "runs" / "student")
    assert run.config.method.beta == 400.0
    assert run.summary["layers"]["student"][0]["shape"] == [4, 16, 16]
    printed = capsys.readouterr().out
    assert "200 training and 100 test images, 100 classes" in printed
    assert "1 epochs of 4 steps, batch 64, fp32 on cpu" in printed


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_imagenet_style_folders(tmp_path: Path) -> None:
    root = write_image_folders(tmp_path)
    data = [
        "--preset",
        "imagenet",
        "--data-root",
        str(root),
        "--batch-size",
        "5",
        "--image-size",
        "24",
        "--workers",
        "1",
    ]
    distil_on(data, tmp_path / "runs", len(list((root / "train").rglob("*.*"))))
    assert RunFolder(tmp_path / "runs" / "student").config.recipe.milestones == (30, 60)


@pytest.mark.parametrize("method", [["kd"], ["equal"], ["pair", "--pair", "1", "0"]], ids=lambda value: value[0])
def test_methods(method: list[str], teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, "--teacher-weights", str(teacher), "--method", *method, "--epochs", "1") == 0
    attention = RunFolder(out).attention()
    found = (
        None if attention is None else (attention.student_layers, attention.teacher_layers, attention.weight.tolist())
    )
    # equal up to the rounding of a mean of halves, which has none
    assert (
        found
        == {"kd": None, "equal": (["a", "b"], ["a", "b"], [[[0.5, 0.5]] * 2]), "pair": (["b"], ["a"], [[[1.0]]])}[
            method[0]
        ]
    )


def test_teacher_by_name_and_file(teacher: Path, tmp_path: Path) -> None:
    """The file of a checkpoint, and of the CRD family's form, without a run around it."""
    state = training_nets.state(teacher, "best")["student"]
    torch.save({"model": state, "epoch": 240}, tmp_path / "crd.pth")
    named = ["--teacher", "training_nets:wide", "--teacher-layers", "a,b", "--method", "kd", "--epochs", "1"]
    losses = []
    for n, weights in enumerate((teacher, teacher / "checkpoints" / "best.pt", tmp_path / "crd.pth")):
        assert train(tmp_path / f"run{n}", *named, "--teacher-weights", str(weights)) == 0
        losses.append(RunFolder(tmp_path / f"run{n}").metrics()[0]["train_kd"])
    assert losses == [losses[0]] * 3


def test_student_weights_are_where_it_starts(teacher: Path, tmp_path: Path) -> None:
    run = training_nets.make_config("wide", **{"student.weights": str(teacher)})
    trainer = training_nets.make_trainer(tmp_path / "run", run)
    stored = training_nets.state(teacher, "best")["student"]
    assert training_nets.differences(dict(trainer.setup.student.net.state_dict()), dict(stored)) == []


def test_evaluate_prints_what_training_found(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["evaluate", str(teacher)]) == 0
    printed = capsys.readouterr().out
    accuracy = RunFolder(teacher).summary["accuracy"]
    for which in ("best", "last"):
        found = accuracy[which]
        assert f"{which}: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, loss " in printed
    assert printed.count(" 360 images\n") == 2


def test_evaluate_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^torch +\d", printed, re.MULTILINE)
    assert all(f" {name}" in printed for name in (*models.names(), "digits", "cifar100", "imagenet"))


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(tmp_path / "run", "--epochs", "2", "--tensorboard", "--log-every", "10") == 0
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = RunFolder(tmp_path / "run").metrics()
    found = [(event.step, event.value) for event in board.Scalars("epoch/test_top1")]
    assert found == [(n + 1, pytest.approx(row["test_top1"])) for n, row in enumerate(rows)]
    # after steps 10, 20 and 23 of each epoch
    assert [event.step for event in board.Scalars("step/loss")] == [10, 20, 23, 33, 43, 46]


BAD = [
    (["--student", ""], "a student is needed"),
    (["--student", "resnet9"], "resnet8"),
    (["--student", "training_nets:missing"], "'training_nets' has no function 'missing'"),
    (["--student", "nowhere:net"], "the module 'nowhere' cannot be imported"),
    (["--student-layers", "a,c"], "the network has no module 'c'"),
    (["--student-weights", "missing.pt"], "missing.pt': neither a file nor the folder of a run"),
    (["--student-weights", "."], "': a folder without checkpoints/best.pt"),
    (["--method", "kd"], "method 'kd' needs a teacher: give --teacher and --teacher-weights"),
    (["--method", "kd", "--teacher", "resnet8"], "teacher 'resnet8' has no parameters to teach with"),
    (["--method", "kd", "--teacher-weights", "missing"], "a teacher needs a name"),
    (
        ["--method", "kd", "--teacher", "resnet8", "--teacher-weights", "TEACHER"],
        "is of another architecture than resnet8",
    ),
    (["--method", "pair", "--teacher-weights", "TEACHER"], "method 'pair' needs --pair I J"),
    (
        ["--method", "pair", "--pair", "0", "2", "--teacher-weights", "TEACHER"],
        "one of 2 student layers and one of 2 teacher layers",
    ),
    (
        ["--method", "kd", "--pair", "0", "1", "--teacher-weights", "TEACHER"],
        "--pair belongs to method 'pair', got method 'kd'",
    ),
    (["--method", "semckd", "--backend", "abacus", "--teacher-weights", "TEACHER"], "--backend must be one of"),
    (
        ["--method", "semckd", "--backend", "cuda", "--teacher-weights", "TEACHER"],
        "backend 'cuda' cannot serve cpu tensors",
    ),
    (["--teacher-weights", "TEACHER"], "method 'ce' takes no teacher"),
    (["--method", "magic"], "argument --method: must be one of ce, kd, semckd, equal, pair, got 'magic'"),
    (["--data", "mnist"], "--data must be one of"),
    (["--data", "cifar100"], "--data-root must be the folder that holds"),
    (["--preset", "cifar100", "--data-root", "missing"], "missing"),
    (["--preset", "imagenet", "--data-root", "missing"], "missing"),
    (["--data", "digits", "--download"], "--download is for 'cifar100' only"),
    (["--image-size", "32"], "--image-size of 'digits' must be 16, got 32"),
    (["--batch-size", "2000"], "--batch-size must be at most 1437"),
    (["--accumulate", "24"], "--accumulate must be at most 23, the number of steps of an epoch, got 24"),
    (["--batch-size", "0"], "argument --batch-size: must be a whole number from 1 to 1000000000, got '0'"),
    (["--epochs", "many"], "argument --epochs: must be a whole number from 1"),
    (["--lr", "nan"], "argument --lr: must be a finite number above 0, got 'nan'"),
    (["--milestones", "3,2"], "--milestones must be epochs in ascending order, got [3, 2]"),
    (["--milestones", "3,x"], "argument --milestones: must be a whole number from 1 to 1000000000, got 'x'"),
    (["--precision", "fp16"], "precision fp16 needs a GPU, got device 'cpu'"),
    (["--cuda-graph"], "a CUDA graph needs a GPU, got device 'cpu'"),
    (["--device", "toaster"], "device 'toaster' cannot be used: "),
    (["--device", "meta"], "device 'meta' cannot be used: "),
    (["--resume", "--overwrite"], "--resume continues a run and --overwrite replaces it: give one of them"),
    (["--preset", "mnist"], "argument --preset: must be one of digits, cifar100, imagenet, got 'mnist'"),
    (["--speed", "11"], "there is no flag --speed: did you mean --seed?"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input(
    flags: list[str],
    message: str,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    try:
        code: Any = train(tmp_path / "new" / "folder", *(str(teacher) if flag == "TEACHER" else flag for flag in flags))
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith(("semckd train: ", "semckd: "))
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_last_batch_that_batchnorm_cannot_normalise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,437 = 4 * 359 + 1, and the third stage of a network on 1 x 1 pixels."""
    assert train(tmp_path / "run", "--batch-size", "359", student="one_pixel") == 2
    assert "--batch-size 359 leaves 1 image for the last batch of an epoch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    # larger maps have values enough
    assert train(tmp_path / "run", "--batch-size", "359", "--epochs", "1") == 0


@pytest.mark.parametrize(("batch_size", "other"), [("359", "358"), ("4", "3"), ("2", "3"), ("1", "3")])
def test_batchnorm_behind_the_pooling(
    batch_size: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,437 = 1 modulo 359, 4, 2 and 1."""
    assert train(tmp_path / "run", "--batch-size", batch_size, student="norm_in_the_head") == 2
    error = capsys.readouterr().err
    assert "1 image for the last batch of an epoch, but the student's BatchNorm1d 'fc.1' sees one value a" in error
    assert f"give another --batch-size, such as {other}\n" in error
    assert list(tmp_path.iterdir()) == []


def test_batchnorm_behind_the_pooling_that_can_train(teacher: Path, tmp_path: Path) -> None:
    flags = ["--batch-size", "359", "--epochs", "1"]
    assert train(tmp_path / "frozen", *flags, student="frozen_norm_in_the_head") == 0
    # as a teacher it does not train
    assert train(tmp_path / "head", "--epochs", "1", student="norm_in_the_head") == 0
    assert train(tmp_path / "kd", *flags, "--teacher-weights", str(tmp_path / "head"), "--method", "kd") == 0


def test_a_loss_that_is_not_finite_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", student="breaks_in_step_8") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("semckd train: the loss is not finite at epoch 1, step 8 of 23 ")
    assert printed.count("\n") == 1


def test_paths_are_kept_from_the_root(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is looked at, and resumes, from anywhere."""
    monkeypatch.chdir(teacher.parent)
    kd = ["--teacher-weights", "teacher", "--method", "kd", "--epochs", "1"]
    assert train(tmp_path / "run", *kd) == 0
    # the command as it was given
    assert train(tmp_path / "run", *kd, "--resume") == 0
    monkeypatch.chdir(tmp_path)
    assert RunFolder("run").load().teacher is not None


def test_out_must_be_a_folder_that_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    for out, reason in (("file", "File exists"), ("file/inside", "Not a directory"), ("x" * 300, "File name too long")):
        capsys.readouterr()
        assert train(tmp_path / out) == 2
        printed = capsys.readouterr().err
        assert reason in printed
        assert printed.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's: root may write anywhere, so that the system's answer is made here."""

    def refused(self: Path, *args: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_bytes", refused)
    assert train(tmp_path / "new" / "run") == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torchvision", "sklearn", "tqdm", "jsonargparse"])
def test_missing_package(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    capsys.readouterr()
    assert train(tmp_path / "new") == 2
    printed = capsys.readouterr().err
    assert f"{name} cannot be imported" in printed
    assert 'pip install "semckd-kernels[train]"' in printed
    assert printed.count("\n") == 1
    # which needs none of them
    assert cli.main(["info"]) == 0


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from semckd_kernels.training.flags import groups

    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag.name in printed for flags in groups().values() for flag in flags)
