"""``--config``: a file, flags over it, and what is said where it does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import training_nets
import yaml
from test_new_method import REGRESSION
from training_nets import make_config

from semckd_kernels.cli import commands as cli
from semckd_kernels.training import config, config_file, presets
from semckd_kernels.training.config import ModelConfig, TrainConfig
from semckd_kernels.training.methods import METHODS

Show = Callable[..., tuple[int, Any, str]]
RECIPE = """
preset: cifar100
student: {name: vgg8, layers: [a, b.0]}
recipe:
  lr: 5e-2  # a text to plain YAML
  epochs: 160
  milestones: [80, 120]
data: {root: images}
"""
WANTED = {
    "student.layers": ("a", "b.0"),
    "recipe.lr": 0.05,
    "recipe.epochs": 160,
    "recipe.milestones": (80, 120),
}


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """``semckd train --print-config``: exit code, configuration and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = cli.main(["train", "--print-config", *words])
        printed = capsys.readouterr()
        return code, config.from_dict(json.loads(printed.out)) if code == 0 else printed.out, printed.err

    return run


def written(text: str | TrainConfig, name: str = "run.yaml") -> list[str]:
    """Flags that name a file in the working folder with this text."""
    Path(name).write_text(text if isinstance(text, str) else text.to_json())
    return ["--config", name]


@pytest.mark.parametrize("name", ["run.yaml", "run.yml", "run", "run.json"])
def test_preset_then_file_then_flags(name: str, show: Show, tmp_path: Path) -> None:
    file = written(json.dumps(yaml.safe_load(RECIPE.replace("5e-2", "0.05"))) if name == "run.json" else RECIPE, name)
    base = presets.preset("cifar100", "vgg8")
    values = {**WANTED, "data.root": str(tmp_path / "images"), "hardware.device": "cpu"}
    code, found, error = show(*file, "--device", "cpu")
    assert (code, error) == (0, "")
    assert found == config.replace(base, **values)
    # wherever they stand, and an option of None
    flags = ["--lr", "0.3", *file, "--data-root", "elsewhere", "--preset", "imagenet", "--device", "cpu"]
    code, found, _ = show(*flags)
    changed = {"recipe.lr": 0.3, "data.root": str(tmp_path / "elsewhere")}
    assert (code, found) == (0, config.replace(presets.preset("imagenet", "vgg8"), **{**values, **changed}))


def test_what_is_printed_is_a_file(show: Show) -> None:
    flags = ["--student", "resnet8", "--device", "cpu", "--lr", "0.02", "--threads", "3"]
    code, made, _ = show(*flags)
    assert code == 0
    for name in ("config.json", "config.yaml"):
        assert show(*written(made, name)) == (0, made, "")
        assert show(*written(made, name), "--lr", "0.5")[1] == config.replace(made, **{"recipe.lr": 0.5})


def test_a_run_again_from_its_own_file(teacher: Path, tmp_path: Path) -> None:
    """The same bits, and its own network by a flag alone: a file is as a stored configuration."""
    again = ["train", "--config", str(teacher / "config.json"), "--out", str(tmp_path / "run")]
    assert cli.main(again) == 0
    training_nets.same_run(teacher, tmp_path / "run")
    assert cli.main([*again, "--resume"]) == 0


def test_a_file_runs_no_code_that_nobody_has_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_nets.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        file = written("student: {name: 'my_nets:net'}")
        capsys.readouterr()
        assert cli.main(["train", *file, "--out", "run"]) == 2
        assert "not an installed package, 'my_nets:net'" in capsys.readouterr().err
        assert not Path("mark").exists()
        assert cli.main(["train", *file, "--out", "run", "--allow-code"]) == 2
        assert Path("mark").exists()


def test_fields_that_are_newer_than_a_run_take_their_defaults(show: Show) -> None:
    """And not those of a preset: the run was made without."""
    run = TrainConfig(ModelConfig("resnet8"))
    older = run.to_dict()
    newer = [name for name in config.fields() if name.count(".") and name not in first_fields()]
    assert newer
    for group, _, name in (name.partition(".") for name in newer):
        if older[group] is not None:
            del older[group][name]
    assert show(*written(json.dumps(older), "config.json"))[1] == config.from_dict(older) == run


def first_fields() -> set[str]:
    return {f"{group}.{name}" for group, names in config.FIRST_FIELDS.items() for name in names.split()}


def test_the_first_fields_are_fields() -> None:
    assert first_fields() <= config.fields().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {speed: 1}", "'run.yaml': `recipe.speed` is not a field: did you mean `recipe.seed`?"),
        # by the name that a flag has, or that others give to it
        ("recipe: {learning_rate: 1}", "'run.yaml': `recipe.learning_rate` is not a field: did you mean `recipe.lr`?"),
        ("warm-up: 0.1", "'run.yaml': `warm-up` is not a field: did you mean `recipe.warm_up`?"),
        # of its own group before others
        ("method: {weight: 3}", "'run.yaml': `method.weight` is not a field: did you mean `method.kd_weight`?"),
        ("recepie: {lr: 1}", "'run.yaml': `recepie` is not a field: did you mean `recipe`?"),
        ("logging: {qwertz: 1}", "'run.yaml': `logging.qwertz` is not a field: there are log_every, checkpoint_every,"),
        ("1: 2", "'run.yaml': `1` is not a field: there are student, teacher, method, data, recipe, "),
        ("recipe: {lr: fast}", "'run.yaml': `recipe.lr` must be of type float, got 'fast'"),
        ("recipe: {lr: '0.1'}", "'run.yaml': `recipe.lr` must be of type float, got '0.1'"),
        ("recipe: {lr: null}", "'run.yaml': `recipe.lr` must be of type float, got None"),
        ("recipe: {epochs: 1e2}", "'run.yaml': `recipe.epochs` must be of type int, got 100.0"),
        ("recipe: {epochs: true}", "'run.yaml': `recipe.epochs` must be of type int, got True"),
        ("recipe: {milestones: 3}", "'run.yaml': `recipe.milestones` must be a list of int, got 3"),
        ("method: {pair: [1]}", "'run.yaml': `method.pair` must be a list of 2 int, got [1]"),
        ("student: {name: 3}", "'run.yaml': `student.name` must be of type str, got 3"),
        ("student: resnet8", "'run.yaml': `student` must be a group of fields, got 'resnet8'"),
        ("hardware: {world_size: 4}", "'run.yaml': `hardware.world_size` is the number of processes: leave it out"),
        ("preset: mnist", "'run.yaml': preset must be one of digits, cifar100, imagenet, got 'mnist'"),
        # together with the rest
        ("recipe: {lr: -1}", "`recipe.lr` of 'run.yaml' must be a finite number above 0, got -1.0"),
        (
            "method: {name: magic}",
            "`method.name` of 'run.yaml' must be one of ce, kd, semckd, equal, pair, got 'magic'",
        ),
        ("method: {beta: 3}", "`method.beta` of 'run.yaml' has no effect with method 'ce': leave it out, or give --m"),
        ("recipe: {gamma: 0.5}", "`recipe.gamma` of 'run.yaml' has no effect with schedule 'cosine': leave it out"),
        # what is no such file
        ("- recipe", "'run.yaml' must hold groups of fields, such as `recipe: {lr: 0.05}`, got ['recipe']"),
        ("", "'run.yaml' must hold groups of fields, such as `recipe: {lr: 0.05}`, got None"),
        ("a: [", "'run.yaml' is not YAML: line 1, column 5: expected the node content, but found '<stream end>'"),
        ("recipe: {lr: 1}\nrecipe: {seed: 2}", "'run.yaml' is not YAML: it has 'recipe' twice in one group"),
        ("a: &b [*b]", "'run.yaml': `a` is not a field: there are "),
        ("format: 2", "'run.yaml' is not the configuration of a run: config: format must be 1, got 2"),
        ("format: 1", "'run.yaml' is not the configuration of a run: config.student is missing"),
    ],
)
def test_one_sentence(text: str, message: str, show: Show) -> None:
    code, out, error = show("--student", "resnet8", *written(text))
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"semckd train: {message}")


def test_a_file_that_cannot_be_read(show: Show, tmp_path: Path) -> None:
    for name, message in (
        ("missing.yaml", "'missing.yaml' cannot be read: No such file or directory"),
        (".", "'.' cannot be read: Is a directory"),
        ("", "'.' cannot be read: Is a directory"),
    ):
        assert show("--config", name) == (2, "", f"semckd train: {message}\n")
    for name, content, message in (
        ("latin", b"\xe9: 1", "'latin' is not a text file in UTF-8"),
        ("x.json", b"{", "'x.json' is not JSON: Expecting property name"),
        ("x.json", b'{"data": {"name": 1, "name": 2}}', "'x.json' is not JSON: it has 'name' twice in one group"),
        ("x.json", b"[" * 100_000, "'x.json' is not JSON: "),
    ):
        (tmp_path / name).write_bytes(content)
        code, _, error = show("--config", name)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith(f"semckd train: {message}")


def test_a_runs_own_file_is_taken_as_it_is(show: Show) -> None:
    """It has fields that its method ignores, and was made by other processes."""
    run = make_config("grey", **{"hardware.world_size": 4, "recipe.batch_size": 16})
    code, found, note = show(*written(run))
    assert (code, found) == (0, config.replace(run, **{"hardware.world_size": 1}))
    assert note == "note: 'run.yaml' is of 4 processes and an update of 64 images: here are 1 and 16\n"
    assert show(*written(run), "--gamma", "0.5")[2] == (
        "semckd train: --gamma has no effect with schedule 'cosine': leave it out, or give --schedule step\n"
    )
    assert show(*written(run), "--preset", "cifar100")[2] == (
        "semckd train: --preset has no effect with --config 'run.yaml', which has every field: leave out one\n"
    )


def test_a_methods_own_options(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, REGRESSION.name, REGRESSION)
    teacher = "teacher: {name: resnet20, weights: teacher.pt}\nstudent: {name: resnet8}\n"
    method = "method: {name: regression, mse_weight: 3}\n"
    assert show(*written(teacher + method))[1].method.own == {"mse_weight": 3.0}
    code, made, _ = show(*written(teacher + method), "--mse-weight", "4")
    assert (code, made.method.own) == (0, {"mse_weight": 4.0})
    assert show(*written(made))[1] == made
    for text, message in (
        ("{name: regression, mse_wieght: 3}", "`method.mse_wieght` is not a field: did you mean `method.mse_weight`?"),
        ("{name: regression, mse_weight: much}", "`method.mse_weight` must be of type float, got 'much'"),
        ("{name: regression, mse_weight: 0}", "`method.mse_weight` of 'run.yaml' must be a finite number above 0, got"),
        ("{name: kd, mse_weight: 3}", "`method.mse_weight` of 'run.yaml' has no effect with method 'kd': leave it"),
    ):
        assert message in show(*written(f"{teacher}method: {text}"))[2]


def test_a_stored_run_under_a_file(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that started a run continues it; another file is told what would change."""
    text = "student: {name: resnet8}\nhardware: {device: cpu}\nrecipe: {seed: 3}\n"
    code, made, _ = show(*written(text))
    assert code == 0
    Path("run").mkdir()
    Path("run/config.json").write_text(made.to_json())
    again = ["--resume", "--out", "run"]
    assert show(*written(text), *again) == (0, made, "")
    assert show(*written(made), *again) == (0, made, "")
    assert show(*written(text + "logging: {log_every: 7}"), *again)[1].logging.log_every == 7
    assert show(*written(text.replace("3", "4")), *again)[2] == (
        "semckd train: the run in 'run' cannot be resumed with another configuration: --seed was 3 and is now 4\n"
    )
    assert "--lr was 0.05 and is now 0.1" in show(*written(f"preset: imagenet\n{text}"), *again)[2]


def test_reading_a_file_in_python(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RECIPE)
    file = config_file.load(tmp_path / "run.yaml")
    assert (file.preset, file.whole) == ("cifar100", None)
    assert file.values == {"student.name": "vgg8", "data.root": "images", **WANTED}
    with pytest.raises(ValueError, match=re.escape("nowhere' cannot be read")):
        config_file.load(tmp_path / "nowhere")
