"""Stored rows as tables in Markdown, one function an op."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Row, or_dash, percent

Line = tuple[str, ...]  # of a table
# what a page shows of the pair loss; the rest is in the CSV files
SHOWN_CASES = {("resnet32x4-resnet8x4", "fp32"), ("resnet32x4-resnet8x4", "bf16")}
SHOWN_CASES |= {(shape, "fp32") for shape in ("vgg13-vgg8", "resnet34-resnet18-imagenet", "vit_tiny-vit_tiny", "tiny")}
SHOWN_KERNELS = "resnet32x4-resnet8x4"


def table(op: str, rows: Sequence[Row]) -> str:
    """A table of the rows of one op on one machine."""
    head, *body = TABLES[op]([row for row in rows if row.op == op])
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))


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
        if row.backend != "copy" and (row.shape, row.dtype) in SHOWN_CASES:
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
        speedups = (or_dash(getattr(ours, name, 0.0)) for name in ("over_reference", "over_same", "over_compiled"))
        both = [row for row in (reference, ours) if row]
        kept, peak = (" / ".join(_rounded(getattr(row, n), 3) for row in both) for n in ("kept_mbytes", "peak_mbytes"))
        lines.append((*what, *times, *speedups, kept, peak))
    return lines


def _step_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "KD ms", "reference ms", "ours ms", "reference / KD", "ours / KD")
    lines: list[Line] = [(*head, "x reference", "x same", "peak MB")]
    for what, found in _side_by_side(rows):
        kd, reference, ours = (found.get(name) for name in ("KD", "reference", "ours"))
        shares = (or_dash(getattr(row, "over_kd", 0.0)) for row in (reference, ours))
        speedups = (or_dash(getattr(ours, name, 0.0)) for name in ("over_reference", "over_same"))
        peak = " / ".join(_rounded(row.peak_mbytes, 3) for row in (kd, reference, ours) if row)
        lines.append((*what, _ms(kd), _ms(reference), _ms(ours), *shares, *speedups, peak))
    return lines


def _teacher_table(rows: Sequence[Row]) -> list[Line]:
    head: Line = ("shape, batch", "type, layout", "pass", "teacher", "ms", "x eager", "x compiled", "/ KD")
    lines: list[Line] = [(*head, "peak MB")]
    for r in sorted(rows, key=lambda r: (r.direction, r.shape, r.dtype != "fp32", -r.p50_ms)):
        what = (f"{r.shape}, {r.batch}", f"{r.dtype}, {r.layout}", r.direction, r.backend)
        eager = or_dash(r.over_same if r.direction == "forward" else 0.0)
        lines.append((*what, _ms(r), eager, or_dash(r.over_compiled), or_dash(r.over_kd), _rounded(r.peak_mbytes, 3)))
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
        if pair != SHOWN_KERNELS or one is None:
            continue
        most = max((row for row in group.values() if row.backend == "cpu"), key=lambda row: row.threads)
        figures = (_ms(torch), _ms(one), or_dash(one.over_same), f"{one.gflops:.0f}", percent(one))
        faster = f"{most.over_one_thread:.2f} on {most.threads}" if most.threads > 1 else "-"
        lines.append((kernel, direction, f"{size}, {one.batch}", dtype, *figures, faster))
    return lines


def _by_kernel(row: Row) -> tuple[str, str, bool, int]:
    """Types by themselves, and their maps by channels, which a shape's second word begins with."""
    return (row.kernel, row.direction, row.dtype != "fp32", int(row.shape.split()[1].split("x")[0]))


TABLES = {
    "pair_loss": _pair_loss_table,
    "criterion": _criterion_table,
    "step": _step_table,
    "teacher": _teacher_table,
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
    "teacher": "Forward passes with maps, without gradients: as people write it, under `torch.compile`, and by "
    "`prepare_teacher`. Steps by plain KD and by ours, whose teachers are as people write them, or prepared. `/ KD`: "
    "time of a step by that of plain KD whose teacher is not prepared.",
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
    "`graph`: its step as one CUDA graph, whose parts cannot be timed. Parts are means of the trainer's own timers.",
}
