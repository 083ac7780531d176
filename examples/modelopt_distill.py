"""SemCKD in NVIDIA's modelopt, whose criteria see two outputs each: here those of the whole networks."""

import modelopt.torch.distill as mtd
import torch
import torch.nn.functional as F
from shared import Net, digits
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.utils.data import DataLoader

import semckd_kernels as sk


class SemCKDLoss(_Loss):
    """modelopt takes instances of torch's ``_Loss`` alone, and trains their parameters with the student's."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *args) -> None:
        super().__init__()
        self.features = sk.FeatureMaps(student), sk.FeatureMaps(teacher)
        self.semckd = sk.SemCKD(*args)

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        return self.semckd(*(features.take() for features in self.features)).loss


def train(steps: int = 40) -> tuple[list[float], nn.Module]:
    torch.manual_seed(0)
    student, teacher = Net(8), Net(16).eval()
    criterion = SemCKDLoss(student, teacher, 64, [8, 16, 32], [16, 32, 64])
    # the whole network's output is the one named ""
    options = {
        "teacher_model": teacher,
        "criterion": {("", ""): criterion},
        "loss_balancer": mtd.StaticLossBalancer(0.95),
    }
    model = mtd.convert(student, mode=[("kd_loss", options)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    losses = []
    for _, (images, labels) in zip(range(steps), DataLoader(digits(), 64), strict=False):
        loss = model.compute_kd_loss(student_loss=F.cross_entropy(model(images), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, mtd.export(model)


if __name__ == "__main__":
    torch.save(train()[1].state_dict(), "student.pt")
