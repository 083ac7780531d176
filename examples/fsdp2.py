"""FSDP2: shard the criterion as a whole, for its operator reads whole parameters.

torchrun --nproc-per-node 2 fsdp2.py
"""

import os

import torch
import torch.distributed as dist
from shared import Net, digits
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

import semckd_kernels as sk

BATCH = 64


def train(steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    student, teacher = Net(8), Net(16)
    model = sk.Distiller.from_example(student, teacher, torch.zeros(1, 3, 16, 16), batch_size=BATCH, beta=50.0)
    # networks stage by stage, the criterion in one piece; then what is left
    for stage in (student.layer1, student.layer2, student.layer3, model.criterion):
        fully_shard(stage)
    fully_shard(model)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    data = digits()
    for _, (images, labels) in zip(
        range(steps), DataLoader(data, BATCH, sampler=DistributedSampler(data, shuffle=False)), strict=False
    ):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    print(os.environ["RANK"], train())
    dist.destroy_process_group()
