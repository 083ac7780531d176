"""torchdistill with SemCKD, from its YAML: python train.py semckd.yaml; torchrun --nproc-per-node 2 train.py ..."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.registry import get_model

# for the data that the YAML names
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def make(config: dict, distributed: bool = False):
    """torchdistill's distillation box of a configuration."""
    import_dependencies(config["dependencies"])
    models = config["models"]
    teacher, student = (
        get_model(models[name]["key"], **models[name]["kwargs"]) for name in ("teacher_model", "student_model")
    )
    # load the teacher's parameters here
    return get_distillation_box(
        teacher, student, config["datasets"], config["train"], torch.device("cpu"), None, distributed, 1
    )


def main(path: str, out: str = "student.pt", steps: int | None = None) -> None:
    if distributed := "RANK" in os.environ:
        dist.init_process_group("gloo")
    box = make(yaml_util.load_yaml_file(path), distributed)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for n, batch in enumerate(box.train_data_loader):
            box.post_forward_process(loss=box.forward_process(*batch))
            if n + 1 == steps:
                break
        box.post_epoch_process()
    # the student alone, under its own names
    torch.save(box.student_model.state_dict(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
