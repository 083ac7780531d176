"""What one forward and backward launches on a GPU, counted without one, beside the budget of each count.

    python -m python_tests.stand_in_cuda.ledger                  every problem that has a budget, a line each
    python -m python_tests.stand_in_cuda.ledger cifar bf16       that one, of ours, by stage
    python -m python_tests.stand_in_cuda.ledger cifar bf16 --what plain --batch 256 --nchw
    python -m python_tests.stand_in_cuda.ledger --write-budget   makes today's counts the budget

Times are predictions of ``costs.py``, for an H100.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import MissingTool, build
from .child import run
from .measure import measure
from .problems import MODULES, NETWORKS, TYPES

BUDGET = Path(__file__).parent / "budget.json"
PREDICTED = "times are predictions for an H100 by the model of costs.py, not measurements"
# counts in the order they are printed; all of them have a budget
COUNTS = ("launches", "triton", "vendor", "copies", "pageable_copies", "syncs", "modules", "peak_mb")


def key(what: str, network: str, kind: str) -> str:
    return f"{what} {network} {kind}"


def stored() -> dict[str, dict[str, int]]:
    """The budgets: by problem, the largest value that each count may have."""
    budgets: dict[str, dict[str, int]] = json.loads(BUDGET.read_text())
    return budgets


def exceeded(counts: dict[str, int], budget: dict[str, int]) -> list[str]:
    """Which counts are over their budget, in words."""
    return [f"{name}: {counts[name]}, budget {limit}" for name, limit in budget.items() if counts[name] > limit]


def measure_all(problems: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The ledgers of several problems, in one process."""
    return [measure(*problem) for problem in problems]


def print_stages(ledger: dict[str, Any]) -> None:
    columns = ("launches", "triton", "vendor", "kernel", "copy", "fill")
    print(f"{'stage':<58}" + "".join(f"{name:>9}" for name in columns) + f"{'pred. us':>10}")
    for stage, row in ledger["stages"].items():
        print(f"{stage:<58}" + "".join(f"{row.get(name, 0):>9.0f}" for name in columns) + f"{row['device_us']:>10.0f}")


def print_totals(ledgers: Sequence[dict[str, Any]]) -> None:
    times = ("host", "device", "eager", "graphed")
    print(
        f"{'problem':<24}"
        + "".join(f"{name:>16}" for name in COUNTS)
        + "".join(f"{f'pred. {t} ms':>17}" for t in times)
    )
    for ledger in ledgers:
        problem, counts, predicted = ledger["problem"], ledger["counts"], ledger["predicted_ms"]
        name = key(problem["what"], problem["network"], problem["kind"])
        budget = stored().get(name, {}) if BUDGET.exists() else {}
        cells = [f"{counts[c]}" + (f" of {budget[c]}" if c in budget else "") for c in COUNTS]
        print(f"{name:<24}" + "".join(f"{c:>16}" for c in cells) + "".join(f"{predicted[t]:>17.2f}" for t in times))
    print(PREDICTED)


def write_budget() -> None:
    problems = [(what, network, kind) for what in MODULES for network in NETWORKS for kind in TYPES]
    ledgers = run(measure_all, problems)
    budgets = {
        key(*problem): {name: ledger["counts"][name] for name in COUNTS}
        for problem, ledger in zip(problems, ledgers, strict=True)
    }
    BUDGET.write_text(json.dumps(budgets, indent=1) + "\n")
    print_totals(ledgers)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m python_tests.stand_in_cuda.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", nargs="?", choices=list(NETWORKS))
    parser.add_argument("kind", nargs="?", choices=list(TYPES), default="bf16", help="half precision is autocast")
    parser.add_argument("--what", choices=list(MODULES), default="ours")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nchw", action="store_true", help="maps are NCHW, not channels_last")
    parser.add_argument("--write-budget", action="store_true")
    options = parser.parse_args()
    try:
        build()
    except MissingTool as missing:
        print(f"the ledger cannot be counted here: {missing}", file=sys.stderr)
        return 1
    if options.write_budget:
        write_budget()
    elif options.network:
        further = {"batch": options.batch, "nhwc": not options.nchw}
        ledger = run(measure, options.what, options.network, options.kind, further)
        print_stages(ledger)
        print()
        print_totals([ledger])
    else:
        ledgers = run(measure_all, [name.split() for name in stored()])
        print_totals(ledgers)
        return int(any(exceeded(x["counts"], stored()[key(*list(x["problem"].values())[:3])]) for x in ledgers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
