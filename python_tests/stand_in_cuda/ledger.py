"""What one forward and backward launches on a GPU, counted without one, beside the budget of each count.

    python -m python_tests.stand_in_cuda.ledger              ours, the plain code, the official modules: a line each
    python -m python_tests.stand_in_cuda.ledger cifar bf16   ours alone, by stage
    python -m python_tests.stand_in_cuda.ledger cifar bf16 --what plain --batch 256 --nchw --mode graph
    python -m python_tests.stand_in_cuda.ledger --host       host milliseconds a step, measured here
    python -m python_tests.stand_in_cuda.ledger --write-budget   stores counts and predictions of today

Times are predictions of ``costs.py``, for an H100. A stage is the innermost function of the package that launched.
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
from .measure import host_ms, measure_all
from .problems import MODES, MODULES, NETWORKS, TYPES, Problem
from .teachers import teachers

BUDGET = Path(__file__).parent / "budget.json"
# for a machine with a GPU, which puts its measurements beside them
PREDICTIONS = Path(__file__).parent / "predicted.json"
PREDICTED = "times are predictions for an H100 by the model of costs.py, not measurements"
# counts in the order they are printed; all of them have a budget
COUNTS = ("launches", "triton", "vendor", "copies", "pageable", "syncs", "programs", "peak_mb")
KINDS = ("launches", "triton", "vendor", "kernel", "copy", "fill")

PEAK_STEP_MB = 8
# that are kept of each prediction, those with the most time
KERNELS = 20

Ledger = dict[str, Any]


def ours() -> list[dict[str, Any]]:
    """The problems that have a budget: training in every type, and the other modes in one of them."""
    return [
        {"what": "ours", "network": network, "kind": kind, "mode": mode}
        for network in NETWORKS
        for kind in TYPES
        for mode in (MODES if kind == "bf16" else MODES[:1])
    ]


def versions() -> dict[str, str]:
    import torch
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def stored() -> dict[str, Any]:
    """Versions, and the budgets: by problem, the largest value that each count may have."""
    content: dict[str, Any] = json.loads(BUDGET.read_text())
    return content


def exceeded(ledger: Ledger, budgets: dict[str, dict[str, int]]) -> list[str]:
    """Which counts are over their budget, in words; a problem without a budget may count nothing."""
    budget, counts = budgets.get(ledger["key"], {}), ledger["counts"]
    over = [name for name in COUNTS if counts[name] > budget.get(name, 0)]
    return [f"{ledger['key']}: {counts[name]} {name}, budget {budget.get(name, 0)}" for name in over]


def print_stages(ledger: Ledger) -> None:
    print(f"{'stage':<64}" + "".join(f"{name:>9}" for name in KINDS) + f"{'predicted us':>14}")
    for stage, row in ledger["stages"].items():
        print(f"{stage:<64}" + "".join(f"{row.get(name, 0):>9.0f}" for name in KINDS) + f"{row['device_us']:>14.0f}")


def print_totals(ledgers: Sequence[Ledger]) -> None:
    """A line a problem: counts, with their budget where it has one, and predicted milliseconds."""
    times, budgets = ("host", "device", "eager", "graphed"), stored()["budgets"]
    print(f"{'':<28}{'':<{14 * len(COUNTS)}}  predicted ms, H100")
    print(f"{'problem':<28}" + "".join(f"{x:>14}" for x in COUNTS) + "".join(f"{x:>9}" for x in times))
    for ledger in ledgers:
        counts, budget = ledger["counts"], budgets.get(ledger["key"], {})
        is_budgeted = ledger["problem"]["batch"] == Problem.batch and ledger["problem"]["nhwc"]
        cells = [f"{counts[c]}" + (f" of {budget[c]}" if budget and is_budgeted else "") for c in COUNTS]
        predicted = [ledger["predicted_ms"][t] for t in times]
        print(f"{ledger['key']:<28}" + "".join(f"{c:>14}" for c in cells) + "".join(f"{ms:>9.2f}" for ms in predicted))
    print(PREDICTED)


def write_budget() -> None:
    ledgers = run(measure_all, ours())
    budgets = {ledger["key"]: {name: ledger["counts"][name] for name in COUNTS} for ledger in ledgers}
    for budget in budgets.values():
        # depends a little on what the allocator had at hand
        budget["peak_mb"] = -(-budget["peak_mb"] // PEAK_STEP_MB) * PEAK_STEP_MB
    BUDGET.write_text(json.dumps({**versions(), "budgets": budgets}, indent=1) + "\n")
    print_totals(ledgers)


def write_predictions() -> None:
    """Of the problems that ``gpu_measure.py`` measures."""
    problems = [
        {"what": what, "network": network, "kind": kind, "batch": batch}
        for what in MODULES
        for network in NETWORKS
        for kind in ("bf16", "fp32")
        for batch in (64, 256)
    ]
    kept = {
        f"{ledger['key']} {ledger['problem']['batch']}": {
            "launches": ledger["counts"]["launches"],
            "predicted_ms": {name: round(ms, 2) for name, ms in ledger["predicted_ms"].items()},
            "kernels": dict(list(ledger["kernels"].items())[:KERNELS]),
        }
        for ledger in run(measure_all, problems)
    }
    PREDICTIONS.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items()) + "\n}\n")


def compare() -> int:
    """Ours with its budgets, beside the plain code and the official modules; 1 where a budget is exceeded."""
    problems = [{"what": w, "network": n, "kind": k} for w in MODULES for n in NETWORKS for k in TYPES]
    ledgers = run(measure_all, problems)
    print_totals(ledgers)
    over = [
        words
        for ledger in ledgers
        if ledger["problem"]["what"] == "ours"
        for words in exceeded(ledger, stored()["budgets"])
    ]
    print("\n".join(over))
    print_teachers()
    return int(bool(over))


def print_teachers() -> None:
    """Launches of a frozen teacher's forward pass, as people write it and prepared."""
    print(f"{'forward pass of a teacher':<28}{'plain':>10}{'prepared':>10}{'share':>8}")
    for name, counts in run(teachers).items():
        share = counts["prepared"] / counts["plain"]
        print(f"{name:<28}{counts['plain']:>10}{counts['prepared']:>10}{share:>8.0%}")


def print_host_times() -> None:
    """What the host needs for a step, ours against the plain code: a ratio that another machine has as well."""
    print(f"{'problem':<16}{'ours ms':>10}{'plain ms':>10}{'ratio':>8}")
    for network in NETWORKS:
        for kind in ("fp32", "bf16"):
            problems = [{"what": what, "network": network, "kind": kind} for what in ("ours", "plain")]
            ours_ms, plain_ms = run(host_ms, problems)
            print(f"{f'{network} {kind}':<16}{ours_ms:>10.2f}{plain_ms:>10.2f}{ours_ms / plain_ms:>8.2f}")
    print("measured on this machine, on the stand-in runtime: the driver's own time is not in it")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m python_tests.stand_in_cuda.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", nargs="?", choices=list(NETWORKS))
    parser.add_argument("kind", nargs="?", choices=list(TYPES), default="bf16", help="half precision is autocast")
    parser.add_argument("--what", choices=list(MODULES), default="ours")
    parser.add_argument("--mode", choices=MODES, default="train")
    parser.add_argument("--batch", type=int, default=Problem.batch)
    parser.add_argument("--nchw", action="store_true", help="maps are NCHW, not channels_last")
    parser.add_argument("--host", action="store_true", help="measure host times instead")
    parser.add_argument("--write-budget", action="store_true", help="store what is counted and predicted now")
    options = parser.parse_args()
    try:
        build()
    except MissingTool as missing:
        print(f"the launches cannot be counted here: {missing}", file=sys.stderr)
        return 1
    if options.write_budget:
        write_budget()
        write_predictions()
    elif options.host:
        print_host_times()
    elif options.network is None:
        return compare()
    else:
        asked = {name: getattr(options, name) for name in ("what", "network", "kind", "mode", "batch")}
        (ledger,) = run(measure_all, [{**asked, "nhwc": not options.nchw}])
        print_stages(ledger)
        print_totals([ledger])
    return 0


if __name__ == "__main__":
    sys.exit(main())
