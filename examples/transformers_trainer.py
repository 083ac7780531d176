"""The Trainer of Transformers with SemCKD: a ViT teaches a ViT by the tokens of its blocks.

python transformers_trainer.py, or torchrun --nproc-per-node 2 transformers_trainer.py
"""

import torch
from shared import digits
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import semckd_kernels as sk


def vit(width: int, depth: int) -> nn.Module:
    sizes = {"image_size": 16, "patch_size": 4, "num_labels": 10, "num_attention_heads": 2}
    config = ViTConfig(hidden_size=width, num_hidden_layers=depth, intermediate_size=2 * width, **sizes)
    return ViTForImageClassification(config)


class Distilled(nn.Module):
    """The Trainer wants one module that takes its batches and gives loss and logits."""

    def __init__(self, student: nn.Module, teacher: nn.Module, batch_size: int) -> None:
        super().__init__()
        # the class token before those of the image is left out; the layers are found by their names
        form = {"prefix_tokens": 1}
        self.distiller = sk.Distiller.from_example(
            student, teacher, torch.zeros(1, 3, 16, 16), batch_size=batch_size, student_maps=form, teacher_maps=form
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        loss, logits, _, _ = self.distiller(pixel_values=pixel_values, labels=labels)
        return {"loss": loss, "logits": logits}


def train(out: str, steps: int = 40, **options) -> nn.Module:
    # one seed, so that all processes make one teacher; yours comes from a file
    torch.manual_seed(0)
    model = Distilled(vit(24, 3), vit(48, 6), batch_size=64)
    data = [{"pixel_values": image, "labels": label} for image, label in digits()]
    arguments = {"per_device_train_batch_size": 64, "learning_rate": 1e-3, "report_to": "none", **options}
    trainer = Trainer(model, TrainingArguments(out, max_steps=steps, **arguments), train_dataset=data)
    trainer.train()
    if trainer.is_world_process_zero():
        # the student alone, for from_pretrained
        model.distiller.student.save_pretrained(out)
    return model


if __name__ == "__main__":
    train("vit-semckd")
