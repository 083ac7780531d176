"""A stranger's run: looking at it imports no code that its configuration names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import training_nets

from semckd_kernels.cli import main
from semckd_kernels.training import named_code

MODULE = "strangers_nets"
# a network's module that shows when it has run
CODE = "from pathlib import Path\n\nfrom training_nets import wide\n\nPath({mark!r}).touch()\n"
COMMANDS = {
    "evaluate": ["evaluate", "."],
    "analyze": ["analyze", "gradcam", "."],
    "resume": ["train", "--resume", "--out", "."],
    "teacher": [
        *("train", "--student", "training_nets:grey", "--student-layers", "a,b", "--method", "semckd"),
        *("--teacher-weights", ".", "--epochs", "1", "--no-tensorboard", "--device", "cpu", "--out", "new"),
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as its author trained it."""
    folder = tmp_path_factory.mktemp("author")
    (folder / f"{MODULE}.py").write_text("from training_nets import wide\n")
    name = ["--student", f"{MODULE}:wide", *training_nets.LAYERS, "--device", "cpu", "--no-tensorboard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert main(["train", *name, "--epochs", "1", "--out", str(folder / "run")]) == 0
    sys.modules.pop(MODULE)
    return folder / "run"


@pytest.fixture
def stranger(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder is a run that names code in it; for Python that is the first place to look."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / f"{MODULE}.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    yield folder
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stored_configuration_imports_nothing(
    command: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "resume":
        (stranger / "summary.json").unlink()
    assert main(COMMANDS[command]) == 2
    message = capsys.readouterr().err
    assert f"not an installed package, '{MODULE}:wide' (found as '" in message
    assert message.count("\n") == 1
    assert "--allow-code" in message
    assert not (stranger.parent / "mark").exists()
    assert main([*COMMANDS[command], "--allow-code"]) == 0
    assert (stranger.parent / "mark").exists()


def test_a_flag_of_this_command_line_allows_its_module_alone(
    stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stranger / "summary.json").unlink()
    given = ["--student", f"{MODULE}:wide"]
    assert main([*COMMANDS["resume"], *given]) == 0
    assert (stranger.parent / "mark").exists()
    with named_code.allowed(["another:net", None, "timm/resnet18"]), pytest.raises(ValueError, match="other_nets"):
        named_code.check("other_nets:wide")


def test_python_dash_m_does_not_look_in_the_working_folder(stranger: Path) -> None:
    """What the program imports of its own accord, and what the configuration names."""
    (stranger / "sklearn.py").write_text(CODE.format(mark=str(stranger.parent / "mark")))
    path = os.pathsep.join([str(Path(training_nets.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "semckd_kernels.cli", "evaluate", "."]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 2
    assert "not an installed package" in result.stderr
    assert not (stranger.parent / "mark").exists()


def test_installed_packages_and_what_only_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed, elsewhere, mark = tmp_path / "site-packages", tmp_path / "elsewhere", tmp_path / "mark"
    for folder, module in ((installed, "whole"), (installed, "split"), (elsewhere, "split")):
        (folder / module).mkdir(parents=True)
    (installed / "whole" / "__init__.py").write_text("")
    (installed / "whole" / "nets.py").write_text("from training_nets import wide\n")
    # a namespace, one part of which is in another folder
    (installed / "split" / "good.py").write_text("")
    (elsewhere / "split" / "evil.py").write_text(CODE.format(mark=str(mark)))
    # shadows the installed one
    (elsewhere / "linked.py").symlink_to(elsewhere / "split" / "evil.py")
    for folder in (installed, elsewhere):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(named_code, "_installed_folders", lambda: [str(installed)])
    named_code.check("whole.nets:wide")
    for name in ("split.evil:wide", "linked:wide", "whole.missing:wide", "no_such:wide", "idlelib.idle:main"):
        with pytest.raises(ValueError, match=f"not an installed package, '{name}'"):
            named_code.check(name)
    assert not mark.exists()
    for module in ("whole.nets", "whole"):
        sys.modules.pop(module)
    # no code: the zoo, torchvision, timm
    for name in ("resnet8", "torchvision/resnet18", "timm/resnet18"):
        named_code.check(name)
