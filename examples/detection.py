"""A detector's feature pyramid: the maps of torchvision's FPN, batch 2, images that are not square."""

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import semckd_kernels as sk

# levels of the pyramid, finest first; a detector of your own has these names as well
LEVELS = [f"backbone.fpn.layer_blocks.{n}" for n in range(4)]


def detector(resnet: str) -> nn.Module:
    # parameters of your own; the usual frozen BatchNorm needs pretrained ones
    backbone = resnet_fpn_backbone(backbone_name=resnet, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    return RetinaNet(backbone, num_classes=2, min_size=32, max_size=64)


def train(steps: int = 2) -> list[float]:
    torch.manual_seed(0)
    student, teacher = detector("resnet18"), detector("resnet34").requires_grad_(False).eval()
    student_maps, teacher_maps = sk.FeatureMaps(student, LEVELS), sk.FeatureMaps(teacher, LEVELS)
    # all levels of both pyramids have 256 channels
    criterion = sk.SemCKD(2, [256] * 4, [256] * 4)
    optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.001)
    images = [torch.rand(3, 32, 48), torch.rand(3, 32, 40)]
    boxes = torch.tensor([[4.0, 4.0, 28.0, 28.0]])
    losses = []
    for _ in range(steps):
        terms = student(images, [{"boxes": boxes, "labels": torch.tensor([1])}] * 2)
        teacher(images)
        loss = sum(terms.values()) + criterion(student_maps.take(), teacher_maps.take()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(train())
