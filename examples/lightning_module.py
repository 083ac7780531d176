"""A LightningModule with SemCKD and averaged weights (EMA): torchrun --nproc-per-node 2 lightning_module.py

Needs Lightning 2.6, whose callback averages the weights.
"""

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from shared import Net, digits
from torch.utils.data import DataLoader

import semckd_kernels as sk


class Distilled(lightning.LightningModule):
    def __init__(self, batch_size: int = 64, beta: float = 50.0, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        student, teacher = Net(8), Net(16)
        example = torch.zeros(1, 3, 16, 16)
        # the teacher is in no checkpoint and no average, moves with the module, and stays in eval mode
        self.distiller = sk.Distiller.from_example(student, teacher, example, batch_size=batch_size, beta=beta)

    def training_step(self, batch, index):
        images, labels = batch
        loss, _, terms, _ = self.distiller(images, labels=labels)
        self.log_dict(terms)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        logits = self.distiller.student(images)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.distiller.parameters(), lr=self.hparams.lr, momentum=0.9)


def main(out: str, **options) -> Distilled:
    # one seed, so that all processes make one teacher; yours comes from a file
    lightning.seed_everything(0)
    module, average = Distilled(), EMAWeightAveraging(decay=0.99)
    trainer = lightning.Trainer(**{"max_epochs": 2, "gradient_clip_val": 5.0, "callbacks": [average], **options})
    trainer.fit(module, DataLoader(digits(), 64, shuffle=True), DataLoader(digits(train=False), 64))
    if trainer.is_global_zero:
        # the student alone, with the averaged weights
        torch.save(module.distiller.student.state_dict(), out)
    return module


if __name__ == "__main__":
    main("student.pt")
