"""Rows of measurements: stored as CSV in ``bench/results/``, printed, and made into the README's tables."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
Line = tuple[str, ...]  # of a table
README = Path(__file__).parent.parent / "README.md"
# what the README shows of the pair loss; the rest is in the CSV files
README_CASES = {("resnet32x4-resnet8x4", "fp32"), ("resnet32x4-resnet8x4", "bf16")}
README_CASES |= {(shape, "fp32") for shape in ("vgg13-vgg8", "resnet34-resnet18-imagenet", "vit_tiny-vit_tiny", "tiny")}
END = "<!-- end of table -->"


@dataclass
class Row:
    """One contender on one shape. Times are per call; speedups are medians of paired ratios.

    ``over_reference`` divides by the reference as it ships (eager; of the criterion and the step in fp32 and nchw),
    ``over_same`` by it, and ``over_compiled`` by its compiled form, in the row's own type and layout. ``over_kd`` is
    how many times *longer* than a plain KD step in that type and layout. Of the data, a call is a batch, and the
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
    # later than the first stored rows, which lack them
    layout: str = ""
    over_same: float = 0.0
    over_kd: float = 0.0
    kept_mbytes: float = 0.0

    @property
    def on_gpu(self) -> bool:
        # a CPU's name is followed by its number of threads, see harness.machine
        return "threads" not in self.device

    @property
    def key(self) -> tuple[str, ...]:
        return (self.op, self.shape, self.dtype, self.direction, self.layout, self.backend, self.device)


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


def as_text(rows: Iterable[Row]) -> list[str]:
    """A plain table for the terminal, of rows of one op."""
    lines = [
        f"{'shape':<28}{'type':<6}{'layout':<15}{'pass':<18}{'contender':<24}{'p50 ms':>10}{'GB/s':>8}{'% copy':>8}"
        f"{'x ref':>8}{'x same':>8}{'x comp':>8}{'/ KD':>7}{'kept MB':>9}{'peak MB':>9}"
    ]
    for r in rows:
        lines.append(
            f"{r.shape:<28}{r.dtype:<6}{r.layout:<15}{r.direction:<18}{r.backend:<24}{r.p50_ms:>10.3f}"
            f"{_or_dash(r.gbytes_s, '.1f'):>8}{_or_dash(r.copy_percent, '.0f'):>8}{r.over_reference:>8.2f}"
            f"{r.over_same:>8.2f}{_or_dash(r.over_compiled):>8}{_or_dash(r.over_kd):>7}"
            f"{_or_dash(r.kept_mbytes, '.1f'):>9}{r.peak_mbytes:>9.1f}"
        )
    return lines


def _or_dash(value: float, form: str = ".2f") -> str:
    """What is not measured in a bench is zero in its rows."""
    return f"{value:{form}}" if value else "-"


def as_markdown(op: str, rows: Iterable[Row]) -> str:
    """A README table of one op, one part a device."""
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        if row.op == op:
            by_device.setdefault(row.device, []).append(row)
    parts = []
    for device, group in by_device.items():
        versions = " and ".join(sorted({row.torch for row in group}))
        dates = " to ".join(sorted({min(r.date for r in group), max(r.date for r in group)}))
        head, *body = TABLES[op](group)
        table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))
        parts.append(f"**{device}**, torch {versions}, {dates}. {LEGENDS[op]}\n\n{table}")
    if not any(group[0].on_gpu for group in by_device.values()):
        parts.append("GPU: not measured on a GPU.")
    if not any(not group[0].on_gpu for group in by_device.values()):
        parts.append("CPU: not measured yet.")
    return "\n\n".join(parts)


def _pair_loss_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = (
        "shape, batch",
        "type",
        "pass",
        "implementation",
        "ms",
        "% of copy speed",
        "x reference",
        "x compiled",
    )
    lines: list[Line] = [(*head, "peak MB")]
    for row in rows:
        if row.backend != "copy" and (row.shape, row.dtype) in README_CASES:
            times = (f"{row.p50_ms:.3g}", f"{row.copy_percent:.0f}")
            speedups = (f"{row.over_reference:.2f}", f"{row.over_compiled:.2f}")
            what = (f"{row.shape}, {row.batch}", row.dtype, row.direction, row.backend)
            lines.append((*what, *times, *speedups, f"{row.peak_mbytes:.1f}"))
    return lines


def _criterion_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "reference ms", "compiled ms", "ours ms", "x reference", "x same")
    lines: list[Line] = [(*head, "x compiled", "kept MB", "peak MB")]
    for what, found in _side_by_side(rows):
        reference, compiled, ours = (found.get(name) for name in ("reference", "compiled", "ours"))
        times = (_ms(reference), _ms(compiled), _ms(ours))
        speedups = (_or_dash(getattr(ours, name, 0.0)) for name in ("over_reference", "over_same", "over_compiled"))
        both = [row for row in (reference, ours) if row]
        kept, peak = (" / ".join(f"{getattr(row, n):.3g}" for row in both) for n in ("kept_mbytes", "peak_mbytes"))
        lines.append((*what, *times, *speedups, kept, peak))
    return lines


def _step_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "KD ms", "reference ms", "ours ms", "reference / KD", "ours / KD")
    lines: list[Line] = [(*head, "x reference", "x same", "peak MB")]
    for what, found in _side_by_side(rows):
        kd, reference, ours = (found.get(name) for name in ("KD", "reference", "ours"))
        shares = (_or_dash(getattr(row, "over_kd", 0.0)) for row in (reference, ours))
        speedups = (_or_dash(getattr(ours, name, 0.0)) for name in ("over_reference", "over_same"))
        peak = " / ".join(f"{row.peak_mbytes:.3g}" for row in (kd, reference, ours) if row)
        lines.append((*what, _ms(kd), _ms(reference), _ms(ours), *shares, *speedups, peak))
    return lines


def _data_table(rows: Sequence[Row]) -> list[Line]:
    lines: list[Line] = [("shape, batch", "batches from", "ms a batch", "images/s", "x DataLoader")]
    for row in sorted(rows, key=lambda row: (row.shape, -row.p50_ms)):
        images_s = f"{1e3 * row.batch / row.p50_ms:,.0f}"
        lines.append((f"{row.shape}, {row.batch}", row.backend, _ms(row), images_s, f"{row.over_reference:.2f}"))
    return lines


def _training_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "step by", "ms a step", "images/s", "loop's time / its own")
    lines: list[Line] = [(*head, "ms: teacher / student / criterion / optimizer / data / other", "peak MB")]
    parts = {(r.shape, r.dtype, r.backend, r.direction): f"{r.p50_ms:.3g}" for r in rows}
    for r in sorted((r for r in rows if r.direction == "step"), key=lambda r: (r.shape, r.dtype != "fp32", r.backend)):
        names = ("teacher", "student", "criterion", "optimizer", "data", "other")
        split = " / ".join(parts.get((r.shape, r.dtype, r.backend, name), "-") for name in names)
        what = (f"{r.shape}, {r.batch}", f"{r.dtype}, {r.layout}", r.backend)
        lines.append(
            (*what, _ms(r), f"{1e3 * r.batch / r.p50_ms:,.0f}", f"{r.over_same:.3f}", split, f"{r.peak_mbytes:.3g}")
        )
    return lines


def _ms(row: Row | None) -> str:
    return f"{row.p50_ms:.4g}" if row else "-"


def _side_by_side(rows: Sequence[Row]) -> list[tuple[tuple[str, str], dict[str, Row]]]:
    """Contenders of one shape, type and layout (and those under a CUDA graph by themselves) as one line."""
    lines: dict[tuple[object, ...], tuple[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
        backend, _, launch = row.backend.partition(" ")
        graph = launch == "graph"
        name = launch if launch == "compiled" else backend if backend in ("reference", "KD") else "ours"
        setting = ", ".join((row.dtype, row.layout, *(("CUDA graph",) if graph else ())))
        # as it ships first, fastest last
        key = (row.shape, row.dtype != "fp32", row.layout != "nchw", graph)
        lines.setdefault(key, ((f"{row.shape}, {row.batch}", setting), {}))[1][name] = row
    return [lines[key] for key in sorted(lines)]


TABLES = {
    "pair_loss": _pair_loss_table,
    "criterion": _criterion_table,
    "step": _step_table,
    "data": _data_table,
    "training": _training_table,
}
LEGENDS = {
    "pair_loss": "`x`: how many times faster than the reference, eager and under `torch.compile`.",
    "criterion": "Forward + backward. bf16 is autocast. `x`: how many times faster ours is than the reference as it "
    "ships (eager, fp32, nchw), eager in the same type and layout, and compiled in the same. Memory: reference / ours, "
    "kept between forward and backward, and at the peak, gradients included.",
    "step": "`/ KD`: time of a step by that of plain KD in the same type and layout. `x`: how many times faster the "
    "step with ours is than with the reference as it ships (fp32, nchw), and in the same type and layout. Peak memory: "
    "KD / reference / ours, over parameters and optimiser state.",
    "data": "Normalised and augmented training batches on the device. `DataLoader` crops, mirrors and converts one "
    "Pillow image at a time, as the reference's does. `x`: how many times more images a second than the fastest of "
    "them.",
    "training": "`loop`: the bare loop over student, teacher, criterion and optimiser, on batches that are there "
    "already. `trainer`: a step of `semckd train` with all that surrounds it, from the same parameters to the same "
    "bits. "
    "`graph`: its step as one CUDA graph, whose parts cannot be timed. Parts are means of the trainer's own clock.",
}


def render_readme(text: str, rows: Iterable[Row]) -> str:
    """The README with those of the tables that it shows made anew."""
    rows = list(rows)
    for op in TABLES:
        begin = f"<!-- table: {op} -->"
        if begin not in text:
            continue
        head, rest = text.split(begin)
        _, tail = rest.split(END, 1)
        text = f"{head}{begin}\n{as_markdown(op, rows)}\n{END}{tail}"
    return text


if __name__ == "__main__":
    README.write_text(render_readme(README.read_text(), load()))
    sys.exit(0)
