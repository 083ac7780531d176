"""The performance pages of the site, and the picture of the README: made from stored rows, never by hand.

python -m bench.pages
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from . import picture
from .results import Row, load
from .tables import LEGENDS, table

DOCS = Path(__file__).parent.parent / "docs"
# what the names of virtual machines' processors hide
MACHINES = {
    "family 26 model 2": "Two Zen 5 cores",
    "family 25": "Two Zen 4 cores",
    "family 23 model 1": "Two Zen 1 cores",
    "family 6 model 207": "Two Emerald Rapids cores",
    "Intel": "Two Intel Xeon cores",
}
TITLES = {
    "step": "A whole training step",
    "teacher": "The frozen teacher",
    "criterion": "The whole criterion",
    "kernels": "Each kernel of the criterion",
    "training": "The trainer beside a bare loop",
    "data": "Batches of CIFAR-100",
    "pair_loss": "The loss alone",
}
NOTES = {
    "step": "Student, teacher, criterion and SGD, against a step of plain KD.",
    "criterion": "`SemCKD`: attention, projections and loss, to the gradients of student maps and parameters.",
    "kernels": "Against torch's own library at the same work; other networks' maps are in the CSV file.",
    "pair_loss": "`SemCKDLoss` on projections that are there already: a small part of a SemCKD step.",
}

HOW = """# Performance

`pytest bench/` (or `make bench`) measures on your machine. Results are checked first, in the same process. All
contenders are interleaved in one run, their inputs rotate past the last-level cache, and a speedup is the median of the
ratios of times taken next to each other. A criterion or a step is preceded by an untimed warm-up of its own kind. The
reference is plain PyTorch, pair by pair, and `torch.compile` of it, in the same type and memory layout.

A table below names its machine, its commit is in the CSV file in `bench/results/`, and losing rows are shown.
"""


def slug(machine: str) -> str:
    return re.sub(r"\W+", "-", machine.lower()).strip("-")


def machine_of(row: Row) -> str:
    """The machine's short name; its device's own where there is none."""
    return next((name for mark, name in MACHINES.items() if mark in row.device), row.device.partition(",")[0])


def by_machine(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by machine, the machine with most kinds of rows first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(machine_of(row), []).append(row)
    return dict(sorted(found.items(), key=lambda item: -len({row.op for row in item[1]})))


def machine_page(machine: str, rows: list[Row]) -> str:
    """All tables of one machine."""
    parts = [f"# {machine}"]
    for op, title in TITLES.items():
        group = [row for row in rows if row.op == op]
        if not group:
            continue
        devices = " and ".join(dict.fromkeys(row.device for row in group))
        versions = " and ".join(sorted({row.torch for row in group}))
        dates = " to ".join(sorted({min(row.date for row in group), max(row.date for row in group)}))
        about = " ".join(filter(None, (NOTES.get(op), LEGENDS[op])))
        parts += [f"## {title}", f"{devices}; torch {versions}; {dates}.", about, table(op, group)]
    return "\n\n".join(parts) + "\n"


def _best(rows: list[Row], op: str, layout: str) -> Row | None:
    """Our row on the CIFAR ResNets in fp32."""
    wanted = (r for r in rows if (r.op, r.shape, r.dtype, r.layout) == (op, "resnet32x4-resnet8x4", "fp32", layout))
    others = ("reference", "KD", "copy")
    return next((r for r in wanted if r.backend.partition(" ")[0] not in others), None)


def summary(machines: dict[str, list[Row]]) -> str:
    """One line a machine: ResNet-32x4 -> ResNet-8x4, fp32, contiguous maps."""
    lines = [
        "| machine | criterion: times faster than plain code | than `torch.compile` of it | step: by ours / plain KD "
        "| by plain code / plain KD |",
        "|---|---|---|---|---|",
    ]
    for machine, rows in machines.items():
        criterion, step = _best(rows, "criterion", "nchw"), _best(rows, "step", "nchw")
        if criterion is None or step is None:
            continue
        link = f"[{machine}](performance/{slug(machine)}.md)"
        reference = step.over_kd * step.over_same
        figures = (criterion.over_same, criterion.over_compiled, step.over_kd, reference)
        lines.append(f"| {link} | " + " | ".join(f"{x:.2f}" for x in figures) + " |")
    return "\n".join(lines)


def pages(rows: list[Row]) -> dict[str, str]:
    """The generated files under ``docs/``, by path."""
    machines = by_machine(rows)
    measured_gpu = any(row.on_gpu for row in rows)
    index = [
        HOW,
        "## In short",
        "ResNet-32x4 -> ResNet-8x4, batch 64, fp32, contiguous (NCHW) maps.",
        summary(machines),
        "" if measured_gpu else "GPU: not measured on a GPU. [GPU status](gpu.md) has what is known.",
        "## Machines",
        "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(f"performance/{slug(m)}" for m in machines) + "\n```",
    ]
    found = {"performance.md": "\n\n".join(part.strip() for part in index if part) + "\n"}
    found |= {f"performance/{slug(machine)}.md": machine_page(machine, group) for machine, group in machines.items()}
    bars = picture.bars([row for row in rows if row.op == "step"], machine_of)
    found |= {f"_static/step-{scheme}.svg": picture.draw(bars, scheme) for scheme in picture.SCHEMES}
    return found


def main() -> None:
    for name, text in pages(load()).items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
