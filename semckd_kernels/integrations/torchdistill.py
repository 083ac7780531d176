"""SemCKD for the configuration files of torchdistill.

A line of the YAML makes the names below known to torchdistill, which stays as it is::

    dependencies: [{name: semckd_kernels.integrations.torchdistill}]

====================  ================================================================================================
``Student4SemCKD``    ``auxiliary_model_wrapper`` of the student, which adds the criterion to what is trained; its
                      ``kwargs`` are those of :class:`semckd_kernels.SemCKD`
``Teacher4SemCKD``    ``auxiliary_model_wrapper`` of the teacher, which keeps it in eval mode: torchdistill leaves a
                      teacher in the mode that it was made in, which is that of training
``SemCKDLoss``        the loss, a member of ``sub_terms``; see :class:`SemCKDLoss`
====================  ================================================================================================

``examples/torchdistill`` has a whole configuration. Needs torchdistill 1.1.5 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torchdistill.common.module_util import get_full_state_dict, load_full_state_dict
    from torchdistill.losses.registry import register_mid_level_loss
    from torchdistill.models.registry import register_auxiliary_model_wrapper
    from torchdistill.models.util import wrap_if_distributed
    from torchdistill.models.wrapper import AuxiliaryModelWrapper
except ImportError as error:
    raise ImportError(
        f"semckd_kernels.integrations.torchdistill needs torchdistill 1.1.5 or newer ({error}): "
        "pip install 'torchdistill>=1.1.5'"
    ) from error

from .. import SemCKD

# where the student's wrapper leaves the criterion for the loss, and the teacher's that it is there
CRITERION = "semckd"


@register_auxiliary_model_wrapper
class Student4SemCKD(AuxiliaryModelWrapper):  # type: ignore[misc]
    """The student and the criterion; whoever saves or loads it saves or loads the student alone.

    Args:
        student_model, device, device_ids, distributed, find_unused_parameters, teacher_model: what torchdistill gives.
        options: of :class:`semckd_kernels.SemCKD`: ``batch_size``, ``s_n``, ``t_n``, and what else it takes.
    """

    def __init__(
        self,
        student_model: nn.Module,
        device: torch.device,
        device_ids: list[int] | None,
        distributed: bool,
        find_unused_parameters: bool | None = None,
        teacher_model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        where = device, device_ids, distributed, find_unused_parameters
        self.student_model = wrap_if_distributed(student_model, *where)
        self.semckd = wrap_if_distributed(SemCKD(**options), *where)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student_model(*args, **kwargs)

    def secondary_forward(self, io_dict: dict[str, Any]) -> None:
        io_dict[CRITERION] = {"output": self.semckd}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return get_full_state_dict(self.student_model)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return load_full_state_dict(self.student_model, state_dict, strict)


@register_auxiliary_model_wrapper
class Teacher4SemCKD(AuxiliaryModelWrapper):  # type: ignore[misc]
    """A teacher that stays in eval mode and gives no gradients.

    Args:
        teacher_model, device: what torchdistill gives.
        options: what else it gives.
    """

    def __init__(self, teacher_model: nn.Module, device: torch.device, **options: Any) -> None:
        super().__init__()
        self.teacher_model = teacher_model.to(device).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher4SemCKD:
        super().train(False)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.teacher_model(*args, **kwargs)

    def secondary_forward(self, io_dict: dict[str, Any]) -> None:
        io_dict[CRITERION] = {"output": None}


@register_mid_level_loss
class SemCKDLoss(nn.Module):
    """SemCKD of the maps that torchdistill's forward hooks keep.

    Args:
        student_module_paths, teacher_module_paths: modules in ``forward_hook: {output: [...]}`` of the student and of
            the teacher whose outputs are the maps, such as ``student_model.layer1``.

    Raises:
        ValueError: in the first step, a path that no hook keeps, a student without :class:`Student4SemCKD` (or behind
            a ``wrapper``, where torchdistill does not reach it), or a teacher without :class:`Teacher4SemCKD`, which
            would be in training mode.
    """

    def __init__(self, student_module_paths: Sequence[str], teacher_module_paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = {"student": list(student_module_paths), "teacher": list(teacher_module_paths)}

    def forward(self, student_io_dict: dict[str, Any], teacher_io_dict: dict[str, Any], *args: Any) -> Tensor:
        for side, io_dict in (("Student", student_io_dict), ("Teacher", teacher_io_dict)):
            if CRITERION not in io_dict:
                key = f"'auxiliary_model_wrapper: {{key: {side}4SemCKD, ...}}'"
                raise ValueError(f"SemCKDLoss needs {key} of the {side.lower()}, and no 'wrapper' around it")
        maps = [self._maps("student", student_io_dict), self._maps("teacher", teacher_io_dict)]
        loss: Tensor = student_io_dict[CRITERION]["output"](*maps).loss
        return loss

    def _maps(self, side: str, io_dict: dict[str, Any]) -> list[Tensor]:
        for path in self.paths[side]:
            if not isinstance(io_dict.get(path, {}).get("output"), Tensor):
                raise ValueError(f"{side}_module_paths: '{path}' must be in forward_hook: output of the {side}")
        return [io_dict[path]["output"] for path in self.paths[side]]
