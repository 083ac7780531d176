"""SemCKD as a training task of timm, in the place of its own feature distillation.

timm has no registry of tasks: ``examples/timm_train.py`` runs timm's own ``train.py`` with :class:`SemCKDTask` in the
place of ``FeatureDistillationTask``. Needs timm 1.0.29 or newer.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

try:
    from timm.task import FeatureDistillationTask
    from timm.task.distillation import FeatureDistillationTrainableModule
    from timm.utils.model import unwrap_model
except ImportError as error:
    raise ImportError(
        f"semckd_kernels.integrations.timm needs timm 1.0.29 or newer ({error}): pip install 'timm>=1.0.29'"
    ) from error

from .. import Distiller, FeatureMaps


class _Teacher(nn.Module):
    """A teacher that takes images which are normalised for the student."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.teacher = task.teacher
        self.register_buffer("mean", task.student_mean, persistent=False)
        self.register_buffer("std", task.student_std, persistent=False)

    def forward(self, images: Tensor) -> Any:
        return self.teacher(self.teacher.normalize_input(images, self.mean, self.std))


class _Trained(Distiller):
    """What timm asks of what it trains: the student's parameter groups, and the criterion as its projection."""

    no_weight_decay = FeatureDistillationTrainableModule.no_weight_decay
    group_matcher = FeatureDistillationTrainableModule.group_matcher
    projection = property(lambda self: self.criterion)


class SemCKDTask(FeatureDistillationTask):  # type: ignore[misc]
    """Cross-entropy (or what else ``criterion`` is), KD of logits and SemCKD.

    Loss: ``task_loss_weight * task + kd_weight * KD + distill_loss_weight * SemCKD``.

    Args:
        student_model: of timm.
        teacher_model: of timm, its name, or a ``DistillationTeacher``.
        batch_size: the largest batch of one process.
        options: those of timm's ``FeatureDistillationTask`` and, beside them, those of
            :meth:`semckd_kernels.Distiller.from_example`: ``kd_weight``, ``temperature``, ``kd_standardize``,
            ``student_layers``, ``teacher_layers`` (None: the layers of ``feature_info``), ``criterion_options``.
            ``distill_loss_weight`` is the paper's beta, and None its value for ImageNet, 50; None for
            ``task_loss_weight`` is 1; dimensions of features are ignored.
    """

    def __init__(
        self, student_model: nn.Module, teacher_model: str | nn.Module, *, batch_size: int, **options: Any
    ) -> None:
        of_timm = {name: options.pop(name) for name in signature(FeatureDistillationTask).parameters if name in options}
        beta = of_timm.pop("distill_loss_weight", None)
        verbose = of_timm.pop("verbose", True)
        # what timm has to say is of a projection that gives way to the criterion
        super().__init__(
            student_model, teacher_model, distill_loss_weight=50.0 if beta is None else beta, verbose=False, **of_timm
        )
        self.verbose = verbose
        student, teacher = unwrap_model(student_model), unwrap_model(self.teacher.model)
        layers = options.pop("teacher_layers", None) or FeatureMaps(teacher).layers
        self.trainable_module: Any = _Trained.from_example(
            student_model,
            _Teacher(self),
            _example(student, self.device, self.dtype),
            batch_size=batch_size,
            teacher_layers=[f"teacher.model.{name}" for name in layers],
            student_maps=_form(student),
            teacher_maps=_form(teacher),
            # cross-entropy is this task's own criterion
            **{**options, "ce_weight": 0.0, "beta": self.distill_loss_weight},
        ).to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        loss, logits, terms, _ = self.trainable_module(input)
        task = self.criterion(logits, target)
        terms = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": self.task_loss_weight * task + loss, "output": logits, "task_loss": task, **terms}

    def compile(self, **options: Any) -> nn.Module | None:  # type: ignore[override]
        """Both networks, each in place, so that their state dicts keep their names."""
        distiller = unwrap_model(self.trainable_module)
        for net in (distiller.student, distiller.teacher):
            net.compile(**options)
        return self.get_eval_model()

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student alone: what timm evaluates and saves."""
        found = super().get_eval_model(module, ema)
        return getattr(unwrap_model(found), "student", found) if found is not None else None


def _example(net: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One image of the size that a network is made for."""
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or net.pretrained_cfg["input_size"][-2:]
    return torch.zeros(1, net.in_chans, *size, device=device, dtype=dtype)


def _form(net: Any) -> dict[str, Any]:
    """How to read a network's maps."""
    nhwc = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return {"prefix_tokens": getattr(net, "num_prefix_tokens", 0), "nhwc": nhwc}
