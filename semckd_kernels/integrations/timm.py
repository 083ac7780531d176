"""SemCKD as a training task of timm, beside its own tasks of distillation.

timm has no registry of tasks: ``examples/timm_train.py`` runs timm's own ``train.py`` with :class:`SemCKDTask` in the
place of ``FeatureDistillationTask``. Needs timm 1.0.29 or newer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

try:
    from timm.models import group_parameters
    from timm.task import DistillationTeacher, TrainingTask, resolve_classification_loss
    from timm.utils.model import unwrap_model
except ImportError as error:
    raise ImportError(
        f"semckd_kernels.integrations.timm needs timm 1.0.29 or newer ({error}): pip install 'timm>=1.0.29'"
    ) from error

from .. import Distiller, FeatureMaps


class _Teacher(nn.Module):
    """A teacher that takes images which are normalised for the student."""

    mean: Tensor
    std: Tensor

    def __init__(self, teacher: nn.Module, student: Any) -> None:
        super().__init__()
        self.teacher = teacher
        first = next(teacher.parameters())
        for name in ("mean", "std"):
            values = torch.tensor(student.pretrained_cfg[name], device=first.device, dtype=first.dtype)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        return self.teacher(self.teacher.normalize_input(images, self.mean, self.std))  # type: ignore[operator]


class _Trained(Distiller):
    """What timm's optimizers ask a module for, answered by the student."""

    def no_weight_decay(self) -> set[str]:
        return {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        student: Any = self.student
        layers = group_parameters(student, student.group_matcher(coarse=coarse), reverse=True)
        groups = {f"student.{name}": group for name, group in layers.items()}
        return lambda name: groups.get(name, max(groups.values()))


class SemCKDTask(TrainingTask):  # type: ignore[misc]
    """Cross-entropy (or what else ``criterion`` is), KD of logits and SemCKD.

    Loss: ``task_loss_weight * task + kd_weight * KD + distill_loss_weight * SemCKD``.

    Args:
        student_model: of timm.
        teacher_model: of timm, its name, or a ``DistillationTeacher``.
        criterion, criterion_kwargs, teacher_pretrained_path, teacher_pretrained_cfg_overlay, device, dtype, verbose: as
            timm's own tasks have them.
        distill_loss_weight: the paper's beta; None takes its value for ImageNet, 50.
        task_loss_weight: None takes 1.
        batch_size: the largest batch of one process.
        kd_weight, temperature, kd_standardize: of KD, see :class:`semckd_kernels.Distiller`.
        student_layers, teacher_layers: modules whose outputs are the maps; None takes those of ``feature_info``.
        criterion_options: of :class:`semckd_kernels.SemCKD`.
        student_feature_dim, teacher_feature_dim: of timm's feature distillation, and ignored.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: str | nn.Module,
        criterion: nn.Module | Callable[..., Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        teacher_pretrained_path: str | None = None,
        teacher_pretrained_cfg_overlay: dict[str, Any] | None = None,
        distill_loss_weight: float | None = None,
        task_loss_weight: float | None = None,
        student_feature_dim: int | None = None,
        teacher_feature_dim: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        *,
        batch_size: int,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
        kd_standardize: bool = False,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        criterion_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.criterion = resolve_classification_loss(criterion, self.device, criterion_kwargs=criterion_kwargs)
        self.task_loss_weight = 1.0 if task_loss_weight is None else task_loss_weight
        student = unwrap_model(student_model)
        if not isinstance(teacher_model, DistillationTeacher):
            path, overlay = teacher_pretrained_path, teacher_pretrained_cfg_overlay
            sizes = student.num_classes, student.in_chans
            teacher_model = DistillationTeacher(teacher_model, *sizes, path, overlay, self.device, self.dtype)
        teacher = unwrap_model(teacher_model.model)
        if teacher_layers is None:
            teacher_layers = FeatureMaps(teacher).layers
        self.trainable_module: nn.Module = _Trained.from_example(
            student_model,
            _Teacher(teacher_model, student),
            _example(student, self.device, self.dtype),
            batch_size=batch_size,
            student_layers=student_layers,
            teacher_layers=[f"teacher.model.{name}" for name in teacher_layers],
            student_maps=_form(student),
            teacher_maps=_form(teacher),
            # of this task's own criterion instead
            ce_weight=0.0,
            kd_weight=kd_weight,
            beta=50.0 if distill_loss_weight is None else distill_loss_weight,
            temperature=temperature,
            kd_standardize=kd_standardize,
            criterion_options=criterion_options or {},
        ).to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        loss, logits, terms, _ = self.trainable_module(input)
        task = self.criterion(logits, target)
        terms = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": self.task_loss_weight * task + loss, "output": logits, "task_loss": task, **terms}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **options: Any) -> SemCKDTask:
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **options)
        return self

    def compile(  # type: ignore[override]
        self, backend: str = "inductor", mode: str | None = None, **options: Any
    ) -> nn.Module | None:
        """Both networks, each in place, so that their state dicts keep their names."""
        distiller = unwrap_model(self.trainable_module)
        for net in (distiller.student, distiller.teacher):
            net.compile(backend=backend, mode=mode, **options)
        return self.get_eval_model()

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student alone: what timm evaluates and saves."""
        found = super().get_eval_model(module, ema)
        return getattr(unwrap_model(found), "student", found) if found is not None else None

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        distiller = unwrap_model(self.trainable_module)
        student = list(distiller.student.parameters())
        return [*student[: -2 if exclude_head else None], *distiller.criterion.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        found = self.get_trainable_module(ema) if module is None else module
        return {} if found is None else {"semckd": unwrap_model(found).criterion.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        found = self.get_trainable_module(ema) if module is None else module
        if state and found is not None:
            unwrap_model(found).criterion.load_state_dict(state["semckd"], strict=strict)


def _example(net: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One image of the size that a network is made for."""
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or net.pretrained_cfg["input_size"][-2:]
    return torch.zeros(1, net.in_chans, *size, device=device, dtype=dtype)


def _form(net: Any) -> dict[str, Any]:
    """How to read a network's maps."""
    nhwc = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return {"prefix_tokens": getattr(net, "num_prefix_tokens", 0), "nhwc": nhwc}
