"""timm's own train.py with SemCKD in the place of its feature distillation.

python timm_train.py PATH/train.py DATA --model STUDENT --kd-model-name TEACHER --kd-distill-type feature -b 128 ...
"""

import argparse
import runpy
import sys

import timm
import timm.task
import torch

from semckd_kernels.integrations.timm import SemCKDTask

launcher = argparse.ArgumentParser(add_help=False)
launcher.add_argument("script")
launcher.add_argument("--batch-size", "-b", type=int, default=128)
# train.py itself takes a teacher's parameters from the hub alone
launcher.add_argument("--teacher-weights")
launcher.add_argument("--kd-weight", type=float, default=1.0)
options, rest = launcher.parse_known_args()


def task(student_model, teacher_model, **others):
    if options.teacher_weights:
        weights = torch.load(options.teacher_weights, weights_only=True)
        net = timm.create_model(teacher_model, num_classes=student_model.num_classes)
        net.load_state_dict(weights.get("state_dict", weights))
        teacher_model = net.to(others.get("device"))
    return SemCKDTask(
        student_model, teacher_model, batch_size=options.batch_size, kd_weight=options.kd_weight, **others
    )


timm.task.FeatureDistillationTask = task
sys.argv = [options.script, *rest, "--batch-size", str(options.batch_size)]
runpy.run_path(options.script, run_name="__main__")
