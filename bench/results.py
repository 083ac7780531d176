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
README_KERNELS = "resnet32x4-resnet8x4"
END = "<!-- end of table -->"


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
            times = (_rounded(row.p50_ms, 3), f"{row.copy_percent:.0f}")
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
        kept, peak = (" / ".join(_rounded(getattr(row, n), 3) for row in both) for n in ("kept_mbytes", "peak_mbytes"))
        lines.append((*what, *times, *speedups, kept, peak))
    return lines


def _step_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "KD ms", "reference ms", "ours ms", "reference / KD", "ours / KD")
    lines: list[Line] = [(*head, "x reference", "x same", "peak MB")]
    for what, found in _side_by_side(rows):
        kd, reference, ours = (found.get(name) for name in ("KD", "reference", "ours"))
        shares = (_or_dash(getattr(row, "over_kd", 0.0)) for row in (reference, ours))
        speedups = (_or_dash(getattr(ours, name, 0.0)) for name in ("over_reference", "over_same"))
        peak = " / ".join(_rounded(row.peak_mbytes, 3) for row in (kd, reference, ours) if row)
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
    parts = {(r.shape, r.dtype, r.backend, r.direction): _rounded(r.p50_ms, 3) for r in rows}
    for r in sorted((r for r in rows if r.direction == "step"), key=lambda r: (r.shape, r.dtype != "fp32", r.backend)):
        names = ("teacher", "student", "criterion", "optimizer", "data", "other")
        split = " / ".join(parts.get((r.shape, r.dtype, r.backend, name), "-") for name in names)
        what = (f"{r.shape}, {r.batch}", f"{r.dtype}, {r.layout}", r.backend)
        lines.append(
            (*what, _ms(r), f"{1e3 * r.batch / r.p50_ms:,.0f}", f"{r.over_same:.3f}", split, _rounded(r.peak_mbytes, 3))
        )
    return lines


def _ms(row: Row | None) -> str:
    return _rounded(row.p50_ms, 4) if row else "-"


def _rounded(value: float, digits: int) -> str:
    """To so many digits, and all zeros behind them."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


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


def _kernels_table(rows: Sequence[Row]) -> list[Line]:
    """One thread's figures in a line, and what all threads make of them."""
    head: Line = ("kernel", "pass", "map, batch", "type", "torch ms", "ours ms", "x torch", "GFLOP/s")
    lines: list[Line] = [(*head, "% of peak", "all threads")]
    found: dict[tuple[str, ...], dict[tuple[str, int], Row]] = {}
    for row in sorted(rows, key=_by_kernel):
        what = (row.kernel, row.direction, row.shape, row.dtype)
        found.setdefault(what, {})[row.backend, row.threads] = row
    for (kernel, direction, shape, dtype), group in found.items():
        pair, _, size = shape.partition(" ")
        one, torch = group.get(("cpu", 1)), group.get(("torch", 1))
        if pair != README_KERNELS or one is None:
            continue
        most = max((row for row in group.values() if row.backend == "cpu"), key=lambda row: row.threads)
        figures = (_ms(torch), _ms(one), _or_dash(one.over_same), f"{one.gflops:.0f}", _percent(one))
        faster = f"{most.over_one_thread:.2f} on {most.threads}" if most.threads > 1 else "-"
        lines.append((kernel, direction, f"{size}, {one.batch}", dtype, *figures, faster))
    return lines


def _by_kernel(row: Row) -> tuple[str, str, bool, int]:
    """Types by themselves, and their maps by channels, which a shape's second word begins with."""
    return (row.kernel, row.direction, row.dtype != "fp32", int(row.shape.split()[1].split("x")[0]))


def _kernels_text(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{'kernel':<13}{'pass':<18}{'map':<40}{'type':<6}{'threads':>8} {'contender':<10}{'p50 ms':>9}{'GFLOP/s':>9}"
        f"{'% of peak':>14}{'x torch':>9}{'x 1 thread':>12}"
    ]
    for r in rows:
        lines.append(
            f"{r.kernel:<13}{r.direction:<18}{r.shape:<40}{r.dtype:<6}{r.threads:>8} {r.backend:<10}{r.p50_ms:>9.3f}"
            f"{r.gflops:>9.1f}{_percent(r):>14}{r.over_same:>9.2f}{_or_dash(r.over_one_thread):>12}"
        )
    return lines


def _percent(row: Row) -> str:
    return f"{row.peak_percent:.0f}" if row.peak_percent else "not measured"


TABLES = {
    "pair_loss": _pair_loss_table,
    "criterion": _criterion_table,
    "step": _step_table,
    "kernels": _kernels_table,
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
    "kernels": "One thread. Maps are the teacher's, C x H x W; the 3x3 convolution has 2C channels in and out. GFLOP/s "
    "of the plain algorithm: `2*B*H*W*9*Cin*Cout` a pass of the 3x3 convolution, whose backward is two passes and "
    "whose Winograd form does a quarter (fp32) or 16/36 (bf16) of it; the same with 1 for 9 of a 1x1 convolution. "
    "`% of peak`: of fused multiply-adds in the row's type, measured beside it. `all threads`: how many times faster.",
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
