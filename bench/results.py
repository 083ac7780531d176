"""Rows of measurements: stored as CSV in ``bench/results/``, printed, and made into the README's tables."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
# what the README shows; the rest is in the CSV files
README_CASES = {("resnet32x4-resnet8x4", "fp32"), ("resnet32x4-resnet8x4", "bf16")}
README_CASES |= {(shape, "fp32") for shape in ("vgg13-vgg8", "resnet34-resnet18-imagenet", "vit_tiny-vit_tiny", "tiny")}
BEGIN, END = "<!-- table: pair_loss -->", "<!-- end of table -->"


@dataclass
class Row:
    """One contender on one shape. Times are per call; speedups are medians of paired ratios."""

    op: str
    backend: str
    direction: str
    dtype: str
    shape: str
    batch: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    mbytes: float
    gbytes_s: float
    copy_percent: float
    over_reference: float
    over_compiled: float
    peak_mbytes: float
    device: str
    torch: str
    python: str
    commit: str
    date: str

    @property
    def on_gpu(self) -> bool:
        # a CPU's name is followed by its number of threads, see harness.machine
        return "threads" not in self.device

    @property
    def key(self) -> tuple[str, ...]:
        return (self.op, self.shape, self.dtype, self.direction, self.backend, self.device)


def load(folder: Path = FOLDER) -> list[Row]:
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for record in csv.DictReader(file):
                values = {f.name: _parse(f.type, record[f.name]) for f in fields(Row)}
                rows.append(Row(**values))
    return rows


def _parse(kind: object, text: str) -> object:
    return {"int": int, "float": float}.get(str(kind), str)(text)


def store(rows: Iterable[Row], folder: Path = FOLDER) -> Path:
    """Replaces the stored rows of the same op, shape, type, direction, contender and device."""
    new = list(rows)
    folder.mkdir(exist_ok=True)
    on_gpu = new[0].on_gpu
    path = folder / ("cuda.csv" if on_gpu else "cpu.csv")
    kept = {row.key: row for row in load(folder) if row.on_gpu == on_gpu}
    kept.update({row.key: row for row in new})
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in sorted(kept.values(), key=lambda r: r.key):
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    temporary.replace(path)
    return path


def as_text(rows: Iterable[Row]) -> list[str]:
    """A plain table for the terminal."""
    lines = [
        f"{'shape':<28}{'type':<6}{'direction':<18}{'contender':<24}{'p50 ms':>9}{'GB/s':>8}{'% copy':>8}"
        f"{'x ref':>8}{'x comp':>8}{'peak MB':>9}"
    ]
    for r in rows:
        lines.append(
            f"{r.shape:<28}{r.dtype:<6}{r.direction:<18}{r.backend:<24}{r.p50_ms:>9.3f}{r.gbytes_s:>8.1f}"
            f"{r.copy_percent:>8.0f}{r.over_reference:>8.2f}{r.over_compiled:>8.2f}{r.peak_mbytes:>9.1f}"
        )
    return lines


def as_markdown(rows: Iterable[Row]) -> str:
    """The README's tables, one a device."""
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        if row.backend != "copy" and (row.shape, row.dtype) in README_CASES:
            by_device.setdefault(row.device, []).append(row)
    parts = []
    for device, group in by_device.items():
        versions = " and ".join(sorted({row.torch for row in group}))
        dates = " to ".join(sorted({min(r.date for r in group), max(r.date for r in group)}))
        head = ("shape, batch", "type", "pass", "implementation", "ms", "% of copy speed")
        head += ("x reference", "x compiled", "peak MB")
        lines = [head, ("---",) * len(head), *(_cells(row) for row in group)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        legend = "`x`: how many times faster than the reference, eager and under `torch.compile`."
        parts.append(f"**{device}**, torch {versions}, {dates}. {legend}\n\n{table}")
    if not any(group[0].on_gpu for group in by_device.values()):
        parts.append("GPU: not measured on a GPU.")
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.shape}, {row.batch}",
        row.dtype,
        row.direction,
        row.backend,
        f"{row.p50_ms:.3g}",
        f"{row.copy_percent:.0f}",
        f"{row.over_reference:.2f}",
        f"{row.over_compiled:.2f}",
        f"{row.peak_mbytes:.1f}",
    )


def render_readme(text: str, rows: Iterable[Row]) -> str:
    """The README with its table made anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{as_markdown(rows)}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(render_readme(README.read_text(), load()))
    sys.exit(0)
