"""CSV files of a run: written whole, appended to line by line, and read strictly."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import write_file

# before the name of a term
TRAIN = "train_"
# terms that metrics.csv has a column for, whatever the method
COMMON_TERMS = ("ce", "kd", "semckd")
# columns that every epoch has, whatever is trained
MEASURED = ("train_top1", "test_top1", "test_top5", "test_loss")
# of the weights as they are trained, where a moving average of them is what the others are of
RAW = "raw_top1"
MILLISECONDS = ("data_ms", "teacher_ms", "student_ms", "criterion_ms", "optimizer_ms", "other_ms")


def loss_columns(terms: Iterable[str]) -> tuple[str, ...]:
    """The columns of metrics.csv with the loss and its terms: those of all methods of this package, and others."""
    return tuple(f"{TRAIN}{name}" for name in dict.fromkeys(("loss", *COMMON_TERMS, *terms)))


def metric_columns(terms: Iterable[str], averaged: bool = False) -> tuple[str, ...]:
    """All columns of metrics.csv, for a method of these terms, with a moving average of the weights or without."""
    raw = (RAW,) if averaged else ()
    return ("epoch", "lr", *loss_columns(terms), *MEASURED, *raw, "images_per_second", "seconds", *MILLISECONDS)


def terms_of(columns: Iterable[str]) -> list[str]:
    """Names of the terms that columns of metrics.csv are of."""
    names = (name.removeprefix(TRAIN) for name in columns if name.startswith(TRAIN) and name not in MEASURED)
    return [name for name in names if name != "loss"]


class CsvFile:
    """A CSV file that begins with the rows there are, and gets more; they stay there when the process dies.

    Whatever was at ``path`` is replaced: the rows come from a checkpoint, so that a line that a crash or a full disk
    has cut off never meets the next one.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        text = io.StringIO()
        writer = _writer(text, columns)
        writer.writeheader()
        writer.writerows(_blank_nans(row) for row in rows)
        write_file(path, text.getvalue().encode())
        # line by line into the kernel: a killed process loses none
        self._file = open(path, "a", newline="", buffering=1)  # noqa: SIM115 (open as long as the run)
        self._writer = _writer(self._file, columns)

    def append(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(_blank_nans(row))

    def sync(self) -> None:
        """Onto the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole lines of as many fields as the header has.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is damaged: {error}") from error
    if not lines or not text.endswith("\n"):
        raise ValueError(f"'{path}' is damaged: its {'last line is cut off' if lines else 'header is missing'}")
    header, *rows = lines
    for n, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"'{path}' is damaged: line {n} has {len(row)} fields, the header {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def number(path: Path, row: Mapping[str, str], name: str) -> float:
    """A field as a number; nan where it is blank or there is no such column.

    Raises:
        ValueError: it is no number.
    """
    text = row.get(name) or "nan"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{path}' is damaged: {name} must be a number, got '{text}'") from None


def _writer(file: Any, columns: Sequence[str]) -> csv.DictWriter[str]:
    return csv.DictWriter(file, columns, lineterminator="\n")


def _blank_nans(row: Mapping[str, Any]) -> dict[str, Any]:
    """An empty cell is a term that the method lacks, or a time that cannot be measured."""
    return {name: "" if value != value and name not in (*MEASURED, RAW) else value for name, value in row.items()}
