"""Damage to each file of a run, as each command meets it: a sentence or a recovery, never silently other numbers.

``SEMCKD_DAMAGE=1`` damages each file at 26 places; without it at two.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import training_nets
from training_nets import train

from semckd_kernels.cli import commands as cli
from semckd_kernels.training.report import charts, report
from semckd_kernels.training.run import lock
from semckd_kernels.training.run import resume as resume_module
from semckd_kernels.training.run.folder import RunFolder

EVERYTHING = bool(os.environ.get("SEMCKD_DAMAGE"))
FLAGS = ["--epochs", "2", "--batch-size", "480", "--method", "semckd", "--log-steps"]
STEPS = 3
FILES = (
    "config.json",
    "summary.json",
    "metrics.csv",
    "attention.csv",
    "steps.csv",
    "report.html",
    lock.NAME,
    "checkpoints/last.pt",
    "checkpoints/best.pt",
)
# which files commands read; --resume reads all
READS = {
    "evaluate": ("config.json", "checkpoints/last.pt", "checkpoints/best.pt"),
    "report": FILES[:5],
    "analyze": (*FILES[:5], "checkpoints/best.pt"),
}
ARGUMENTS = {"evaluate": ["evaluate"], "report": ["report"], "analyze": ["analyze", "attention"]}
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, one stopped in its second epoch, and finished and stopped ones from another seed."""
    found = {}
    for name, seed in (("run", "0"), ("another", "1")):
        flags = [*FLAGS, "--teacher-weights", str(teacher), "--seed", seed]
        found[name] = tmp_path_factory.mktemp("finished") / name
        assert train(found[name], *flags) == 0
        with pytest.MonkeyPatch.context() as patch:
            training_nets.signal_after(patch, signal.SIGTERM, STEPS + 1)
            found[f"stopped {name}"] = tmp_path_factory.mktemp("stopped") / name
            assert train(found[f"stopped {name}"], *flags) == 143
    return found


def truncated(share: float) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def without_the_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(share: float, bit: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 1 << bit
        path.write_bytes(content)

    return damage


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(len(path.read_bytes())))


def zeros(path: Path) -> None:
    """As a file system may leave a file that was not flushed."""
    path.write_bytes(bytes(len(path.read_bytes())))


def damages() -> Iterator[tuple[str, Damage | str]]:
    shares = [0.02, 0.2, 0.4, 0.6, 0.8, 0.97] if EVERYTHING else [0.5]
    yield from ((f"truncated at {share}", truncated(share)) for share in shares)
    if EVERYTHING:
        yield "truncated by a byte", without_the_last_byte
    places = random.Random(0)
    for _ in range(14 if EVERYTHING else 1):
        share, bit = places.random(), places.randrange(8)
        yield f"bit {bit} at {share:.2f}", flipped(share, bit)
    yield from (("missing", missing), ("another", "another"))
    if EVERYTHING:
        yield from (("empty", empty), ("noise", noise), ("zeros", zeros))


def numbers(run: Path, command: str, output: str) -> str:
    """What a command has found."""
    if command == "evaluate":
        return output
    if command == "report":
        return (run / "report.html").read_text()
    return (run / "analysis" / "attention.json").read_text()


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of a command, whose complaints are sentences."""
    capsys.readouterr()
    code = cli.main(arguments)
    printed = capsys.readouterr()
    assert code in (0, 1, 2)
    assert bool(code) <= bool(printed.err)
    assert all(line.startswith("semckd ") and len(line) < 600 for line in printed.err.splitlines()), printed.err
    assert printed.err.count("\n") <= 2
    return code, printed.out


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers in place of charts, which take a second."""

    def render(folder: RunFolder) -> str:
        return f"{folder.config} {folder.metrics()} {folder.summary['accuracy']} {folder.attention()}</html>"

    monkeypatch.setattr(report, "render", render)
    monkeypatch.setattr(charts, "png", lambda figure: b"")


@pytest.fixture(scope="module")
def clean(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {}


# a flipped bit in every file, and with the slow tests one of the other kinds in turns
CASES = [
    pytest.param(name, what, damage, id=f"{name}, {what}", marks=() if m == 1 else pytest.mark.slow)
    for n, name in enumerate(FILES)
    for m, (what, damage) in enumerate(damages())
    if EVERYTHING or m in (1, (0, 2, 3)[n % 3])
]


@pytest.mark.parametrize(("name", "what", "damage"), CASES)
def test_a_sentence_or_a_recovery(
    name: str,
    what: str,
    damage: Damage | str,
    runs: dict[str, Path],
    clean: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def damaged(source: str) -> Path:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(runs[source], run)
        if not (run / name).exists():
            return run
        if isinstance(damage, str):
            shutil.copy(runs[source.replace("run", damage)] / name, run / name)
        else:
            damage(run / name)
        return run

    for command, read in READS.items():
        if command not in clean:
            run = tmp_path / "clean" / "run"
            shutil.copytree(runs["run"], run, dirs_exist_ok=True)
            code, output = outcome([*ARGUMENTS[command], str(run)], capsys)
            assert code == 0
            clean[command] = numbers(run, command, output)
        if name in read:
            run = damaged("run")
            code, output = outcome([*ARGUMENTS[command], str(run)], capsys)
            assert code or numbers(run, command, output) == clean[command]
    for source in ("run", "stopped run"):
        run = damaged(source)
        before = contents(run)
        code, _ = outcome(["train", "--resume", "--out", str(run)], capsys)
        if code == 0:
            training_nets.same_run(runs["run"], run)
            assert resume_module.lacking(RunFolder(run), RunFolder(run).config) is None
        elif code == 2:
            assert contents(run) == before


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
