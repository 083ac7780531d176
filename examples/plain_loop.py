"""SemCKD in a training loop of your own, in three forms that give the same loss: python plain_loop.py FORM"""

import sys

import torch
import torch.nn.functional as F
from shared import Net, digits
from torch.utils.data import DataLoader

import semckd_kernels as sk
from semckd_kernels.logits import kd_loss

BATCH, BETA, LAYERS = 64, 50.0, ["layer1", "layer2", "layer3"]
S_N, T_N = [8, 16, 32], [16, 32, 64]


def train(form: str = "distiller", steps: int = 100) -> list[float]:
    torch.manual_seed(0)
    student, teacher = Net(8), Net(16).eval().requires_grad_(False)
    if form == "distiller":
        # student, criterion and frozen teacher in one module; it holds the loss weights as well
        example = torch.zeros(1, 3, 16, 16)
        model = sk.Distiller.from_example(student, teacher, example, batch_size=BATCH, beta=BETA)
    else:
        student_maps, teacher_maps = sk.FeatureMaps(student, LAYERS), sk.FeatureMaps(teacher, LAYERS)
        # one module is the fast form; two are what code written for the reference calls
        model = sk.SemCKD(BATCH, S_N, T_N) if form == "semckd" else sk.SelfA(3, 3, BATCH, S_N, T_N)
    parameters = [*model.parameters(), *(student.parameters() if form != "distiller" else ())]
    optimizer, losses = torch.optim.SGD(parameters, lr=0.05, momentum=0.9), []
    for _, (images, labels) in zip(range(steps), DataLoader(digits(), BATCH), strict=False):
        if form == "distiller":
            loss = model(images, labels=labels).loss
        else:
            logits, teacher_logits = student(images), teacher(images)
            maps = student_maps.take(), teacher_maps.take()
            semckd = model(*maps).loss if form == "semckd" else sk.SemCKDLoss()(*model(*maps))
            loss = F.cross_entropy(logits, labels) + kd_loss(logits, teacher_logits, 4.0) + BETA * semckd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(train(*sys.argv[1:]))
