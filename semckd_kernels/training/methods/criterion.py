"""The loss of a training step: the weighted sum of a method's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ... import SemCKD, SemCKDOutput
from .method import Given, Layout, MethodConfig, Output


class Loss(NamedTuple):
    """The loss that a step minimises, its terms before they are weighted (scalars, by name), and SemCKD's attention."""

    total: Tensor
    terms: dict[str, Tensor]
    weight: Tensor | None = None  # [B, S, T], detached


class Criterion(nn.Module):
    """The loss of a training step; a term of weight zero is not computed, but for the cross-entropy.

    Args:
        method: which terms, and their weights.
        modules: of the terms that have one, by the term's name; their parameters train together with the student's.
    """

    def __init__(self, method: MethodConfig, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
        super().__init__()
        self.method = method
        for term in method.terms:
            module, what = modules.get(term.name), "be a SemCKD" if term.is_semckd else "be given"
            if (term.build is not None and module is None) or (term.is_semckd and not isinstance(module, SemCKD)):
                raise ValueError(f"the module of the term '{term.name}' must {what}, got {type(module).__name__}")
        for name, module in modules.items():
            self.add_module(name, module)

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.method.terms)

    @property
    def weights(self) -> dict[str, float]:
        """Weight in the loss of each term that is computed, in their order."""
        return {term.name: self.method.value(term.weight_name) for term in self.method.terms}

    @property
    def terms(self) -> list[str]:
        """Names of the terms that are computed, in their order."""
        return list(self.weights)

    @property
    def attention(self) -> SemCKD | None:
        """The module whose attention is recorded."""
        name = next((term.name for term in self.method.terms if term.is_semckd), "")
        return cast("SemCKD | None", self._modules.get(name))

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Loss:
        """Outputs of both networks for a batch and its labels ``[B]`` to the loss; no teacher where none is needed."""
        if self.needs_teacher and teacher is None:
            raise ValueError("teacher must be given for a distillation loss")
        total, terms, weight = None, dict[str, Tensor](), None
        for term in self.method.terms:
            given = Given(student, cast(Output, teacher), labels, self.method, self._modules.get(term.name))
            found = term.compute(given)
            if isinstance(found, SemCKDOutput) != term.is_semckd:
                what = "SemCKD's output" if term.is_semckd else "a scalar"
                raise ValueError(f"the term '{term.name}' must be {what}, got {type(found).__name__}")
            if isinstance(found, SemCKDOutput):
                value, weight = found.loss, found.weight
            else:
                value = found
            if value.ndim:
                raise ValueError(f"the term '{term.name}' must be a scalar, got shape {list(value.shape)}")
            terms[term.name] = value
            weighted = self.method.value(term.weight_name) * value
            total = weighted if total is None else total + weighted
        assert total is not None
        return Loss(total, terms, weight)


def channels(shapes: Sequence[torch.Size]) -> list[int]:
    """Channels of maps ``[c, h, w]`` or tokens ``[N, c]``, without the batch."""
    return [shape[0] if len(shape) == 3 else shape[-1] for shape in shapes]


def build(
    method: MethodConfig,
    batch_size: int,
    student_shapes: Sequence[torch.Size] = (),
    teacher_shapes: Sequence[torch.Size] = (),
) -> Criterion:
    """The criterion of a method, with fresh parameters.

    Args:
        method: its name and the values of its options.
        batch_size: samples of one process that the attention is built for.
        student_shapes, teacher_shapes: of the maps, without the batch: ``[c, h, w]`` or ``[N, c]``.

    Raises:
        ValueError: the pair does not exist.
    """
    layout = Layout(method, batch_size, student_shapes, teacher_shapes)
    modules = {term.name: term.build(layout) for term in method.terms if term.build is not None}
    return Criterion(method, modules)


def layer_names(criterion: Criterion, student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Student and teacher layer of each weight of the attention, row by row; empty without an attention."""
    if criterion.attention is None:
        return []
    if criterion.method.record.association == "pair" and criterion.method.pair is not None:
        i, j = criterion.method.pair
        student, teacher = [student[i]], [teacher[j]]
    return [(s, t) for s in student for t in teacher]
