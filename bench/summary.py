"""The closing table of ``pytest bench/``: three lines that a person reads at a glance."""

from __future__ import annotations

from collections.abc import Iterable

from .results import Row, or_dash

SHAPE = "resnet32x4-resnet8x4"
NAMES = {"pair_loss": "loss alone", "criterion": "criterion", "step": "training step"}


def as_summary(rows: Iterable[Row]) -> list[str]:
    """Loss, criterion and step of the CIFAR ResNets in fp32, by the fastest of ours."""
    found = [row for row in rows if row.shape == SHAPE and row.dtype == "fp32" and row.layout in ("", "nchw")]
    lines = [
        f"{'':<15}{'plain code':>12}{'ours':>12}{'times':>9}{'faster than':>15}{'peak memory, MB':>18}",
        f"{'':<15}{'ms':>12}{'ms':>12}{'faster':>9}{'torch.compile':>15}{'plain / ours':>18}",
    ]
    devices = []
    for op, name in NAMES.items():
        group = [row for row in found if row.op == op and row.direction != "forward"]
        plain = next((row for row in group if row.backend == "reference"), None)
        ours = [row for row in group if row.backend.partition(" ")[0] not in ("reference", "copy", "KD")]
        if plain is None or not ours:
            continue
        best = min(ours, key=lambda row: row.p50_ms)
        memory = f"{plain.peak_mbytes:.0f} / {best.peak_mbytes:.0f}"
        lines.append(
            f"{name:<15}{plain.p50_ms:>12.1f}{best.p50_ms:>12.1f}{best.over_same:>9.2f}"
            f"{or_dash(best.over_compiled):>15}{memory:>18}"
        )
        if best.over_kd:
            lines.append(
                f"{'':<15}a plain KD step's time: {plain.over_kd:.2f} by plain code, {best.over_kd:.2f} by ours"
            )
        devices.append(f"{best.device}; torch {best.torch}; {SHAPE}, batch {best.batch}, fp32")
    return [*lines, *dict.fromkeys(devices)] if devices else ["no rows of the loss, the criterion or a step"]
