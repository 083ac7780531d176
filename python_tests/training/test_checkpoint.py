"""Checkpoints: old or new but never half, and nothing but tensors and plain values read back."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets

from semckd_kernels.training.run import checkpoint
from semckd_kernels.training.run.checkpoint import CheckpointError

OLD = {"epoch": 1, "student": {"w": torch.arange(3.0)}}
NEW = {"epoch": 2, "student": {"w": torch.ones(1000)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "last.pt", OLD)
    return tmp_path / "last.pt"


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 2,000 bytes: pytest's own, where it writes to one, included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def is_old(path: Path) -> bool:
    """The checkpoint is the old one, and nothing lies beside it."""
    whole = training_nets.differences(checkpoint.load(path), {"format": 1, **OLD}) == []
    return whole and [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_saved_is_loaded(path: Path) -> None:
    assert is_old(path)
    checkpoint.save(path, NEW)
    assert training_nets.differences(checkpoint.load(path), {"format": 1, **NEW}) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_one_whole(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    expected = f"cannot write checkpoint '{path}': No space left on device; the earlier one there is whole"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        checkpoint.save(path, NEW)
    monkeypatch.undo()
    assert is_old(path)


def test_a_file_that_cannot_grow_leaves_the_old_one_whole(path: Path) -> None:
    with small_files(), pytest.raises(CheckpointError, match="File too large; the earlier one there is whole"):
        checkpoint.save(path, NEW)
    assert is_old(path)


def test_without_an_earlier_one(tmp_path: Path) -> None:
    with small_files(), pytest.raises(CheckpointError, match="File too large; there is no earlier one"):
        checkpoint.save(tmp_path / "last.pt", NEW)
    with pytest.raises(CheckpointError, match="No such file or directory; there is no earlier one"):
        checkpoint.save(tmp_path / "missing" / "last.pt", NEW)
    assert list(tmp_path.iterdir()) == []


def test_data_are_on_the_disk_before_the_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    checkpoint.save(path, NEW)
    assert calls == ["file", "rename", "folder"]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "student": Code()}, "last.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint 'last\.pt' is damaged"):
        checkpoint.load(Path("last.pt"))
    assert not Path("was-executed").exists()


def test_files_that_are_no_checkpoints(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
    torch.save({"format": 2}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this program in format 1"):
        checkpoint.load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*: No such file"):
        checkpoint.load(path)


def test_random_numbers_go_on() -> None:
    state = checkpoint.rng_state()
    first = torch.rand(3)
    checkpoint.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
