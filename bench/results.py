"""Rows of measurements: stored as CSV in ``bench/results/``, and printed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Row:
    """One contender on one shape. Times are per call; speedups are medians of paired ratios.

    ``over_reference`` divides by the reference as it ships (eager; of the criterion and the step in fp32 and nchw),
    ``over_same`` by it, and ``over_compiled`` by its compiled form, in the row's own type and layout. ``over_kd`` is
    how many times *longer* than a plain KD step in that type and layout. Of a kernel ``over_same`` divides by torch's
    own library, and ``over_one_thread`` by the same contender on one thread. Of the data, a call is a batch, and the
    reference is the DataLoader with the number of workers that is fastest. What a bench does not measure is zero.
    """

    op: str
    backend: str
    direction: str
    dtype: str
    shape: str
    batch: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    mbytes: float = 0.0
    gbytes_s: float = 0.0
    copy_percent: float = 0.0
    over_reference: float = 0.0
    over_compiled: float = 0.0
    peak_mbytes: float = 0.0
    device: str
    torch: str
    python: str
    commit: str
    date: str
    # later than the first stored rows, which lack them
    layout: str = ""
    over_same: float = 0.0
    over_kd: float = 0.0
    kept_mbytes: float = 0.0
    # of single kernels: operations are those of the plain algorithm, the peak is that of multiply-adds in the row's
    # type, on the row's threads, in the same run
    kernel: str = ""
    threads: int = 0
    gflops: float = 0.0
    peak_gflops: float = 0.0
    peak_percent: float = 0.0
    over_one_thread: float = 0.0

    @property
    def on_gpu(self) -> bool:
        # a CPU's name is followed by its number of threads, see harness.machine
        return "threads" not in self.device

    @property
    def key(self) -> tuple[str, ...]:
        what = (self.op, self.shape, self.dtype, self.direction, self.layout, self.backend, self.device)
        return (*what, self.kernel, str(self.threads))


def load(folder: Path = FOLDER) -> list[Row]:
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for record in csv.DictReader(file):
                # an empty or missing column is the default
                values = {f.name: _parse(f.type, record[f.name]) for f in fields(Row) if record.get(f.name)}
                rows.append(Row(**values))
    return rows


def _parse(kind: object, text: str) -> object:
    return {"int": int, "float": float}.get(str(kind), str)(text)


def store(rows: Iterable[Row], folder: Path = FOLDER) -> Path:
    """Replaces the stored rows of the same op, shape, type, direction, layout, contender and device."""
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


OPS = ("pair_loss", "criterion", "step", "teacher", "kernels", "data", "training")


def as_text(rows: Iterable[Row]) -> list[str]:
    """A plain table for the terminal, of rows of one op."""
    rows = list(rows)
    if rows[0].op == "kernels":
        return _kernels_text(rows)
    lines = [
        f"{'shape':<28}{'type':<6}{'layout':<15}{'pass':<18}{'contender':<24}{'p50 ms':>10}{'GB/s':>8}{'% copy':>8}"
        f"{'x ref':>8}{'x same':>8}{'x comp':>8}{'/ KD':>7}{'kept MB':>9}{'peak MB':>9}"
    ]
    for r in rows:
        lines.append(
            f"{r.shape:<28}{r.dtype:<6}{r.layout:<15}{r.direction:<18}{r.backend:<24}{r.p50_ms:>10.3f}"
            f"{or_dash(r.gbytes_s, '.1f'):>8}{or_dash(r.copy_percent, '.0f'):>8}{r.over_reference:>8.2f}"
            f"{r.over_same:>8.2f}{or_dash(r.over_compiled):>8}{or_dash(r.over_kd):>7}"
            f"{or_dash(r.kept_mbytes, '.1f'):>9}{r.peak_mbytes:>9.1f}"
        )
    return lines


def or_dash(value: float, form: str = ".2f") -> str:
    """What is not measured in a bench is zero in its rows."""
    return f"{value:{form}}" if value else "-"


def _kernels_text(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{'kernel':<13}{'pass':<18}{'map':<40}{'type':<6}{'threads':>8} {'contender':<10}{'p50 ms':>9}{'GFLOP/s':>9}"
        f"{'% of peak':>14}{'x torch':>9}{'x 1 thread':>12}"
    ]
    for r in rows:
        lines.append(
            f"{r.kernel:<13}{r.direction:<18}{r.shape:<40}{r.dtype:<6}{r.threads:>8} {r.backend:<10}{r.p50_ms:>9.3f}"
            f"{r.gflops:>9.1f}{percent(r):>14}{r.over_same:>9.2f}{or_dash(r.over_one_thread):>12}"
        )
    return lines


def percent(row: Row) -> str:
    return f"{row.peak_percent:.0f}" if row.peak_percent else "not measured"
