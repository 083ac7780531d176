"""What the analyses share: finished runs, their names, and results that are written whole at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ..training.run.checkpoint import write_file
from ..training.run.folder import RunFolder


@dataclass(frozen=True)
class Result:
    """What an analysis found: a few lines to print, and the contents of its files by name."""

    summary: str
    files: dict[str, bytes]

    def write(self, folder: Path) -> list[Path]:
        """Writes all files, each whole or not at all, over those of an earlier analysis; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            write_file(folder / name, content)
        return [folder / name for name in self.files]


def link(folder: RunFolder, out: Path) -> None:
    """Makes a run's report anew where it links the files of a folder, and where its packages are installed.

    Raises:
        ValueError, OSError: the run's files cannot be read, or the report cannot be written.
    """
    if out.resolve() != (folder.path / "analysis").resolve() or find_spec("jinja2") is None:
        return
    from ..training.report import report

    with folder.locked():
        report.write(folder)


def finished(path: str | Path) -> RunFolder:
    """A finished run.

    Raises:
        ValueError: the folder is no run's, the run is not finished, or a file is not as the run has written it.
        OSError: a file is missing.
    """
    folder = RunFolder(path)
    folder.verify()
    return folder


def titles(folders: Sequence[RunFolder]) -> list[str]:
    """A short name of each run: its method, and where several have one method, the folder's name beside it."""
    methods = [folder.config.method.record.label for folder in folders]
    return [
        f"{method} ({folder.path.resolve().name})" if methods.count(method) > 1 else method
        for method, folder in zip(methods, folders, strict=True)
    ]


def same_data(folders: Sequence[RunFolder]) -> None:
    """Raises ValueError where runs were trained on different data sets."""
    for folder in folders[1:]:
        first, other = folders[0].config.data.name, folder.config.data.name
        if first != other:
            raise ValueError(
                f"runs must share a data set: '{folders[0].path}' has '{first}', '{folder.path}' has '{other}'"
            )


@contextmanager
def evaluation(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that each submodule had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def csv_bytes(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file; floats in full, so that they read back as they were, and None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def json_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first one to the left and the others to the right."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)
    return "\n".join(lines)
