"""One writer a folder: a lock that ends with its process, however that ends.

The lock is a POSIX record lock (``fcntl.lockf``) on the file ``semckd.lock``. The kernel releases it when the process
ends, by ``kill -9`` as well, and processes that it has forked, such as those that decode images, do not hold it. Over
NFS it holds between machines (version 4, or version 3 with its lock daemon; after a crash of a whole machine the
server releases it when the lease has run out, about 90 s). Where a file system has no such locks, a warning says so and
nothing keeps a second process out.

The file stays when the lock is released: it says who has written here last, and that the folder is a run's.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

NAME = "semckd.lock"
_KIND = "run of semckd"
_BUSY = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# (device, inode) of what this process holds: a record lock does not keep its own process out, and ends when that closes
# the file, whatever it was opened for
_held: set[tuple[int, int]] = set()


class Locked(ValueError):
    """Another process writes to the folder; the message names it."""


class FolderLock:
    """The lock of a folder as a context that may be entered again by its holder.

    Entering makes the folder where it does not exist, which shows that it can be written to. Leaving removes what
    entering has made, unless something else lies there by then.

    Raises:
        Locked: another holder has it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._depth = 0
        self._file = -1
        self._made: list[Path] = []

    @property
    def held(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> FolderLock:
        if self._depth == 0:
            folder = self._path.parent
            self._made = [path for path in (folder, *folder.parents) if not path.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = self._acquire()
            except BaseException:
                self._remove_folders()
                raise
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        with contextlib.suppress(OSError):
            # removed while it is held: whoever waits for it looks whether the file still has its name
            if [path.name for path in self._path.parent.iterdir()] == [NAME]:
                self._path.unlink()
        self._remove_folders()
        _held.discard(_identity(self._file))
        os.close(self._file)

    def _acquire(self) -> int:
        while True:
            if _is_held(self._path):
                raise Locked(_sentence(self._path, _own()))
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                self._lock(file)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), os.stat(self._path)):
                        _write(file)
                        _held.add(_identity(file))
                        return file
            except BaseException:
                os.close(file)
                raise
            # its last holder has removed it between opening and locking
            os.close(file)

    def _lock(self, file: int) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                raise Locked(_sentence(self._path, holder(self._path.parent) or {})) from error
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"semckd: the file system of '{self._path.parent}' has no locks ({error.strerror}): start no second "
                "process on this folder",
                file=sys.stderr,
            )

    def _remove_folders(self) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of a folder, or has held it last: host, pid, since; None where there was never one."""
    path = folder / NAME
    try:
        if _is_held(path):
            return _own()
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and values.get("kind") == _KIND else None


def _is_held(path: Path) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in _held


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _own() -> dict[str, Any]:
    return {"kind": _KIND, "host": socket.gethostname(), "pid": os.getpid()}


def _write(file: int) -> None:
    values = {**_own(), "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, (json.dumps(values) + "\n").encode(), 0)


def _sentence(path: Path, who: dict[str, Any]) -> str:
    known = f"process {who['pid']} on {who['host']}" if {"pid", "host"} <= set(who) else "another process"
    since = f", since {who['since']}" if "since" in who else ""
    return f"'{path.parent}' is in use by {known}{since}: wait until it ends, or stop it"
