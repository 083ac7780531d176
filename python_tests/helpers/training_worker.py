"""What each of two processes does in ``test_distributed``: ``torchrun --max-restarts 1 training_worker.py FOLDER``.

Scenarios run one after the other in one process group (torchrun's store serves only one); what a process finds is left
in ``FOLDER/rank{0,1}.pt``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import training_nets
from training_nets import make_config, train
from undrawn import undrawn

from semckd_kernels.training import config, distributed
from semckd_kernels.training import preparation as setup
from semckd_kernels.training.loop import trainer as engine
from semckd_kernels.training.run import checkpoint
from semckd_kernels.training.run.folder import RunFolder

RANK = int(os.environ.get("RANK", "0"))
# 1,437 images make 22 full steps of 64, and one that two processes fill up with a repeated image
FULL_STEPS = 22


def full_steps(run: config.TrainConfig, folder: Path) -> tuple[engine.Trainer, dict[str, Any]]:
    """An epoch without its last step; the trainer, and the sums of this process."""
    ranks = distributed.connect(run.hardware.device)
    prepared = setup.prepare(run, ranks)
    created = RunFolder(folder)
    if ranks.is_main:
        created.create(run)
    ranks.agree(None)
    trainer = engine.Trainer(prepared, created)
    trainer.steps = FULL_STEPS
    sums: dict[str, Any] = {}
    row = trainer._row

    def noted(*args: Any) -> Any:
        sums.update(trainer.sums.state())
        return row(*args)

    trainer._row = noted  # type: ignore[method-assign]
    trainer.run()
    return trainer, sums


def alone(world_size: int) -> config.TrainConfig:
    """The student alone, without BatchNorm: a global batch of 64."""
    sizes = {"recipe.batch_size": 64 // world_size, "hardware.world_size": world_size}
    return make_config("without_norm", **{"recipe.epochs": 1, **sizes})


def accumulating(world_size: int) -> config.TrainConfig:
    return config.replace(alone(world_size), **{"recipe.batch_size": 32 // world_size, "recipe.accumulate": 2})


def distil(teacher: Path) -> list[str]:
    flags = ["--teacher-weights", str(teacher), "--method", "semckd", "--epochs", "2", "--batch-size", "50"]
    return [*flags, "--log-every", "4"]


def stopped_on_one_rank(folder: Path, teacher: Path) -> int:
    """Its checkpoint is long in writing, and whoever does not wait for it resumes from none."""
    add, save, count = engine.StepRecords.add, checkpoint.save, 0

    def counted(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        add(self, *args)
        if count == 6 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def slow(*args: Any) -> None:
        time.sleep(1)
        save(*args)

    engine.StepRecords.add = counted  # type: ignore[method-assign]
    checkpoint.save = slow
    code = train(folder, *distil(teacher), student="dropout")
    engine.StepRecords.add = add  # type: ignore[method-assign]
    checkpoint.save = save
    return code


def seen_by_one_rank(stopped: Path, folder: Path) -> int:
    """Each resumes in a folder of its own, as on machines that share none."""
    own = folder / str(RANK)
    shutil.copytree(stopped, own)
    if RANK == 1:
        (own / "checkpoints" / "last.pt").unlink()
    return training_nets.resume(own)


def replaced(root: Path) -> int:
    """A run whose second process is killed in the middle of its second epoch, in torchrun's first attempt."""
    add, count = engine.StepRecords.add, 0

    def counted(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        add(self, *args)
        if (count, RANK, os.environ["TORCHELASTIC_RESTART_COUNT"]) == (20, 1, "0"):
            os.kill(os.getpid(), signal.SIGKILL)

    engine.StepRecords.add = counted  # type: ignore[method-assign]
    flags = [*distil(root / "teacher"), "--checkpoint-every", "3", "--resume"]
    code = train(root / "replaced", *flags, student="dropout")
    engine.StepRecords.add = add  # type: ignore[method-assign]
    return code


def main(root: Path) -> None:
    teacher = root / "teacher"
    # one group serves all scenarios
    distributed.disconnect = lambda: None
    found: dict[str, Any] = {"replaced": replaced(root)}
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        # the survivor
        os._exit(found["replaced"])
    for name, run in (("alone", alone(2)), ("accumulated", accumulating(2))):
        trainer, sums = full_steps(run, root / name)
        found[name] = {"state": dict(trainer.distiller.state_dict()), "sums": sums}
    found["whole"] = train(root / "whole", *distil(teacher), student="dropout")
    found["stopped"] = stopped_on_one_rank(root / "stopped", teacher)
    found["torn"] = seen_by_one_rank(root / "stopped", root / "torn")
    found["resumed"] = training_nets.resume(root / "stopped")
    found["seeds"] = train(root / "seeds", "--epochs", "1", "--batch-size", "300", "--seeds", "2")
    found["bad"] = train(root / "bad", "--student-layers", "a,c")
    # one image is broken, of the share of one process
    images = ["--preset", "imagenet", "--data-root", str(root / "images"), "--image-size", "16", "--workers", "0"]
    found["images"] = train(root / "images_run", *images, "--epochs", "1", "--batch-size", "4", student="rgb")
    found["broken"] = train(root / "broken", "--epochs", "1", student="breaks_on_rank_1")
    torch.save(found, root / f"rank{RANK}.pt")
    torch.distributed.barrier()
    # torch's own threads have aborted a process on its way out (torch 2.14, 2 of 40 runs)
    os._exit(0)


if __name__ == "__main__":
    with undrawn():
        main(Path(sys.argv[1]))
