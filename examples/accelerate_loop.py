"""SemCKD with Accelerate: accelerate launch accelerate_loop.py. One module is prepared: one forward pass is wrapped."""

import torch
from accelerate import Accelerator
from shared import Net, digits
from torch.utils.data import DataLoader

import semckd_kernels as sk


def train(out: str, steps: int = 40, **options) -> list[float]:
    accelerator = Accelerator(**{"gradient_accumulation_steps": 2, **options})
    # one seed, so that all processes make one teacher; yours comes from a file
    torch.manual_seed(0)
    student, teacher = Net(8), Net(16)
    model = sk.Distiller.from_example(student, teacher, torch.zeros(1, 3, 16, 16), batch_size=64, beta=50.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(digits(), 64, shuffle=True))
    losses = []
    for _, (images, labels) in zip(range(steps), loader, strict=False):
        with accelerator.accumulate(model):
            loss = model(images, labels=labels).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    # the student alone, written by one process
    accelerator.save(accelerator.unwrap_model(model).student.state_dict(), out)
    return losses


if __name__ == "__main__":
    train("student.pt")
