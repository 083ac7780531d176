"""A sweep of SemCKD's weight over seeds, which continues where it was stopped: python sweep.py FOLDER"""

import statistics
import sys
from pathlib import Path

from semckd_kernels import training

BETAS, SEEDS = (25.0, 50.0, 100.0), (0, 1, 2)
# what all runs share: fields as in a file of `semckd train --config`
SHARED = {"preset": "digits", "data.train_fraction": 0.1, "recipe.batch_size": 64}


def sweep(out: Path, betas=BETAS, seeds=SEEDS, student="resnet8", teacher="resnet20", **fields) -> dict[float, float]:
    """Mean test accuracy over seeds by weight."""
    shared = {**SHARED, **fields}
    taught = training.train(
        {**shared, "student.name": teacher, "data.train_fraction": 1.0}, out / "teacher", resume=True
    )
    base = {**shared, "student.name": student, "method.name": "semckd", "teacher.weights": str(taught.folder)}
    found = {}
    for beta in betas:
        accuracies = []
        for seed in seeds:
            config = training.make_config(base, {"method.beta": beta, "recipe.seed": seed})
            summary = training.train(config, out / f"beta{beta:g}-seed{seed}", resume=True, quiet=True)
            accuracies.append(summary.last.top1)
        found[beta] = statistics.mean(accuracies)
        print(f"beta {beta:g}: {found[beta]:.1%} over {len(accuracies)} seeds")
    return found


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = sweep(out)
    run = training.load(out / f"beta{max(found, key=found.get):g}-seed{SEEDS[0]}")
    print(f"{run.config.student.name}, {run.summary.best.top1:.1%}, for images of {run.images.image_size}: {out}")
