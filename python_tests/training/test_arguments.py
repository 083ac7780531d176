"""The command line without a training: near names, help, refusals of flags without effect, what a preset sets."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_nets import make_config

from semckd_kernels import __version__
from semckd_kernels.cli import arguments
from semckd_kernels.cli import commands as cli
from semckd_kernels.training import config, presets
from semckd_kernels.training.flags import by_name, flag_name, groups, in_flags
from semckd_kernels.training.methods import METHODS
from semckd_kernels.training.parser import either, nearest

# a value for each flag that a method may use or ignore
VALUES = {
    "method.ce_weight": ["0.5"],
    "method.kd_weight": ["0.5"],
    "method.temperature": ["3"],
    "method.kd_standardize": [],
    "method.label_smoothing": ["0.1"],
    "method.beta": ["7"],
    "method.factor": ["8"],
    "method.soft": ["2"],
    "method.backend": ["reference"],
    "method.pair": ["0", "0"],
}
TEACHER = ["--teacher", "resnet20", "--teacher-weights", "teacher.pt"]


def shown(*flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and output of ``semckd train --print-config``."""
    capsys.readouterr()
    try:
        code = cli.main(["train", "--student", "resnet8", "--device", "cpu", "--print-config", *flags])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def refused(*flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that bad flags are answered with."""
    code, out, error = shown(*flags, capsys=capsys)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    return error.removeprefix("semckd train: ").rstrip()


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--lerning-rate", "--lr"),
        ("--learning_rate", "--lr"),
        ("-lr", "--lr"),
        ("--epoch", "--epochs"),
        ("--batchsize", "--batch-size"),
        ("--batch", "--batch-size"),
        ("--weight_decay", "--weight-decay"),
        ("--path_t", "--teacher-weights"),
        ("--model_s", "--student"),
        ("--kd_T", "--temperature"),
        ("--print-confg", "--print-config"),
        ("--ouput", "--out"),
    ],
)
def test_an_unknown_flag_is_answered_with_a_near_one(flag: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(flag, "7", capsys=capsys) == f"there is no flag {flag}: did you mean {near}?"
    # the value may be in the same word
    assert refused(f"{flag}=7", capsys=capsys) == f"there is no flag {flag}: did you mean {near}?"


@pytest.mark.parametrize("flag", ["--colour", "--x", "--qwertz", "-b"])
def test_no_flag_is_proposed_that_is_not_near(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(flag, "7", capsys=capsys) == f"there is no flag {flag}: `semckd train --help` lists all"


def test_values_are_not_taken_for_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("--beta", "-5", capsys=capsys) == "argument --beta: must be a finite number above 0, got '-5'"
    code, out, _ = shown("--student-weights=--odd", "--data-root", "-with blanks", capsys=capsys)
    assert code == 0
    assert json.loads(out)["student"]["weights"].endswith("/--odd")
    # after two dashes nothing is a flag
    assert re.fullmatch("unrecognized arguments: (-- )?--epohcs", refused("--", "--epohcs", capsys=capsys))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], ", analyze, got 'trian': did you mean 'train'?"),
        (["--versoin"], "there is no flag --versoin: did you mean --version?"),
        (["info", "cifar"], "got 'cifar': did you mean 'cifar100'?"),
        (["train", "--method", "semkcd"], "semckd, equal, pair, got 'semkcd': did you mean 'semckd'?"),
        (["train", "--preset", "imagnet"], "got 'imagnet': did you mean 'imagenet'?"),
        (["evaluate", "run", "--wich", "best"], "there is no flag --wich: did you mean --which?"),
        # before it is said what is missing
        (["evaluate", "--wich", "best"], "there is no flag --wich: did you mean --which?"),
        (["analyze", "gradcam", "run", "--image", "1"], "there is no flag --image: did you mean --images?"),
        (["train", "--out", ""], "must be a folder, got an empty name"),
        (["train", "--resume", "--print-config"], "--resume continues the run in a folder: give --out DIR"),
        (["train", "--student", "resnet8"], "a folder for the run is needed: give --out DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_nearest() -> None:
    known = ["epochs", "seed", "student", "student-layers", "teacher"]
    assert nearest("epohcs", known) == "epochs"
    assert nearest("teach", known) == "teacher"
    # two begin so, one of them is nearer
    assert nearest("studen", known) == "student"
    assert nearest("se", known) is None
    assert nearest("colour", known) is None


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ([], ("train", "evaluate", "report", "compare", "demo", "info", "analyze")),
        (["analyze"], ("attention", "mismatch", "single-pairs", "gradcam")),
    ],
)
def test_without_a_command_the_usage_is_shown(
    words: list[str],
    commands: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # which needs no package
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: semckd ")
    assert all(f"\n    {name}" in printed.err for name in commands)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"semckd_kernels {__version__}\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_help_is_in_full_phrases_with_types_and_defaults() -> None:
    found = list(parsers(cli.make_parser()))
    assert len(found) >= 10
    for parser in found:
        for action in parser._actions:
            where = f"{parser.prog} {'/'.join(action.option_strings) or action.dest}"
            if isinstance(action, (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)):
                continue
            assert action.help, where
            # a verb in front, and no genitive without its noun
            assert not re.match(r"(of|by|from|to|the|a|an|its|which|whether)\b", action.help), where
            if action.option_strings and action.nargs != 0:
                assert action.choices or action.metavar, f"{where} has no type"
            if action.option_strings and action.nargs != 0 and "--out" not in action.option_strings:
                needed = action.dest == "student.name" or action.required
                assert needed or "(default: " in action.help, f"{where} has no default"


def test_help_shows_the_presets_values(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--epochs INT train for this many epochs (default: 10; cifar100: 240; imagenet: 90)" in printed
    assert "(default: 50; cifar100: 400)" in printed
    assert "--temperature FLOAT divide the logits of KD by this (default: 4)" in printed
    assert "(default: none; cifar100: 150,180,210; imagenet: 30,60)" in printed
    assert all(flag.name in printed for flags in groups().values() for flag in flags)


def test_print_config_is_what_a_run_would_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "cifar100", "--lr", "0.02", "--method", "kd", *TEACHER, "--temperature", "2"]
    code, out, error = shown(*flags, capsys=capsys)
    assert (code, error) == (0, "")
    path = tmp_path / "config.json"
    path.write_text(out)
    wanted = {"recipe.lr": 0.02, "method.name": "kd", "teacher.name": "resnet20", "method.temperature": 2.0}
    teacher = {"teacher.weights": str(Path("teacher.pt").resolve())}
    assert config.load(path) == config.replace(presets.preset("cifar100", "resnet8"), **wanted, **teacher)
    # nothing is made, and bad input is refused as it is in a training
    assert [found.name for found in tmp_path.iterdir()] == ["config.json"]
    assert refused("--milestones", "3,2", "--schedule", "step", capsys=capsys) == (
        "--milestones must be epochs in ascending order, got [3, 2]"
    )
    # of a stored run: its own, with what may change
    path.write_text(make_config(**{"recipe.seed": 3}).to_json())
    capsys.readouterr()
    assert cli.main(["train", "--print-config", "--resume", "--out", str(tmp_path), "--log-every", "7"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert (stored["recipe"]["seed"], stored["logging"]["log_every"]) == (3, 7)


@pytest.mark.parametrize("name", presets.NAMES)
def test_info_shows_a_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", name]) == 0
    rows = dict(re.findall(r"^(--\S+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    recipe = presets.preset(name, "x").recipe
    assert rows["--epochs"] == str(recipe.epochs)
    assert rows["--lr"].split()[0] == f"{recipe.lr:g}"
    assert rows["--milestones"] == (",".join(map(str, recipe.milestones)) or "none")
    assert rows["--schedule"] == recipe.schedule
    assert ("0.01 for MobileNetV2" in rows["--lr"]) is (name == "cifar100")


@pytest.mark.parametrize("method", METHODS)
def test_flags_that_a_method_ignores_are_refused(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a method's flags at once are taken; each of the others is named with the methods that use it."""
    assert {name.removeprefix("method.") for name in VALUES} == {
        flag.sets.removeprefix("method.") for flag in groups()["loss"] if flag.sets != "method.name"
    }
    base = ["--method", method, *([] if method == "ce" else TEACHER)]
    base += ["--pair", "0", "0"] if method == "pair" else []
    used = [name for name in VALUES if name.removeprefix("method.") in METHODS[method].fields]
    everything = [word for name in used for word in (flag_name(name), *VALUES[name])]
    assert shown(*base, *everything, capsys=capsys)[0] == 0
    for name in set(VALUES) - set(used) - {"method.pair"}:
        users = [other for other in METHODS if name.removeprefix("method.") in METHODS[other].fields]
        assert refused(*base, flag_name(name), *VALUES[name], capsys=capsys) == (
            f"{flag_name(name)} has no effect with method '{method}': leave it out, or give --method {either(users)}"
        )


def test_beta_without_a_method_says_which_one_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("--beta", "100", capsys=capsys) == (
        "--beta has no effect with method 'ce': leave it out, or give --method semckd, equal or pair"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warm-up", "7"], "--warm-up must be a share of all updates, from 0 to below 1, got 7: 7 of 10 epochs are"),
        (["--warm-up", "1"], "--warm-up must be a share of all updates, from 0 to below 1, got 1: 1 of 10 epochs are"),
        (["--warm-up", "70"], "--warm-up must be a share of all updates, from 0 to below 1, got 70"),
        (["--momentum", "1"], "--momentum must be from 0 to below 1, got 1"),
        (["--milestones", "3"], "--milestones has no effect with schedule 'cosine': leave it out, or give --schedule"),
        (["--gamma", "0.5"], "--gamma has no effect with schedule 'cosine'"),
        (
            ["--optimizer", "adamw", "--momentum", "0.5"],
            "--momentum has no effect with optimizer 'adamw': leave it out, or give --optimizer sgd",
        ),
        (
            ["--betas", "0.9,0.95"],
            "--betas has no effect with optimizer 'sgd': leave it out, or give --optimizer adamw",
        ),
        (["--eps", "1e-6"], "--eps has no effect with optimizer 'sgd'"),
        (
            ["--schedule", "torch/OneCycleLR", "--min-lr", "1e-3"],
            "--min-lr has no effect with schedule 'torch/OneCycleLR'",
        ),
        (["--weight-decay", "0", "--no-decay-all"], "--decay-all has no effect with --weight-decay 0"),
        (["--schedule", "step", "--gamma", "0.5"], "--gamma has no effect without milestones"),
        (
            ["--schedule", "step", "--milestones", "3,10"],
            "--milestones must be below the number of epochs, 10, got 10",
        ),
        (["--prepare-teacher"], "--prepare-teacher has no effect with method 'ce': leave it out, or give --method kd"),
        (["--ce-weight", "0"], "--ce-weight must be above 0 with method 'ce', got 0"),
        (["--method", "kd", *TEACHER, "--kd-weight", "0"], "--kd-weight must be above 0 with method 'kd', got 0"),
        (
            ["--method", "semckd", *TEACHER, "--kd-weight", "0", "--temperature", "3"],
            "--temperature has no effect with --kd-weight 0",
        ),
        (
            ["--method", "semckd", *TEACHER, "--batch-size", "3"],
            "--factor must be at most --batch-size, got 4 for 3 images",
        ),
        (
            ["--student-weights", "x.pt", "--student-pretrained"],
            "--student-pretrained has no effect with --student-weights: leave it out",
        ),
        (
            ["--method", "kd", *TEACHER, "--teacher-pretrained"],
            "--teacher-pretrained has no effect with --teacher-weights: leave it out",
        ),
        (["--augment"], "--augment has no effect with data set 'digits', which has no augmentation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_numbers_that_make_no_sense_together(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(*flags, capsys=capsys).startswith(message)


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        (
            ["--data", "cifar100"],
            "note: data set 'cifar100' is trained by the recipe of preset digits, the default: 10 epochs, batch size "
            "64, learning rate 0.05, schedule cosine, beta 50; --preset cifar100 is the paper's\n",
        ),
        (
            ["--preset", "imagenet", "--data", "digits", "--epochs", "90", "--batch-size", "32"],
            "note: data set 'digits' is trained by the recipe of preset imagenet: 90 epochs, batch size 32, learning "
            "rate 0.1, schedule step, beta 50\n",
        ),
        (
            ["--preset", "cifar100", "--epochs", "160"],
            "note: 160 epochs end before milestone 180 of preset cifar100: give --milestones EPOCH,... to lower the "
            "learning rate earlier\n",
        ),
        (["--workers", "4"], "note: --workers has no effect with data set 'digits', which is held in memory\n"),
        (
            ["--data-root", "."],
            "note: --data-root has no effect with data set 'digits', which comes with scikit-learn\n",
        ),
        (["--preset", "cifar100"], ""),
        (["--preset", "cifar100", "--data", "cifar100", "--epochs", "160", "--milestones", "90"], ""),
        (["--preset", "imagenet", "--workers", "8"], ""),
        ([], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_notes(flags: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(*flags, capsys=capsys)[2] == note


def test_fields_become_flags() -> None:
    assert in_flags("recipe.epochs was 3 and is now 5; hardware.world_size was 1 and is now 2") == (
        "--epochs was 3 and is now 5; the number of processes was 1 and is now 2"
    )
    assert in_flags("batch_size 359 leaves 1 image: give another batch_size, such as 358") == (
        "--batch-size 359 leaves 1 image: give another --batch-size, such as 358"
    )
    # words of the language, parts of paths and keys of files stay what they are
    for text in (
        "'/data/recipe.lr.txt' is missing",
        "the data must be whole",
        "'data' of 'train' must be uint8",
        "config.recipe.lr is missing",
        "'a/batch_size.txt' is no run",
    ):
        assert in_flags(text) == text
    assert in_flags("indices must be from 0 to 9", {"indices": "--images"}) == "--images must be from 0 to 9"
    assert all(by_name()[flag.sets] == flag for flags in groups().values() for flag in flags)
    assert arguments.DEFAULT_PRESET == "digits"
