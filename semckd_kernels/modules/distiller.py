"""Student, teacher and criterion in one forward pass, for trainers of other people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import FeatureMaps, channels
from ..logits import kd_loss
from ..teacher import prepare_teacher as prepared
from .semckd import SemCKD


class DistillerOutput(NamedTuple):
    """What :class:`Distiller` gives."""

    loss: Tensor  # the weighted sum of the terms
    logits: Tensor  # of the student, [B, classes]
    terms: dict[str, Tensor]  # "ce", "kd", "semckd", each without its weight
    weight: Tensor | None  # the attention [B, S, T], detached; None without a criterion


class Distiller(nn.Module):
    r"""Student and criterion in one module, with a frozen teacher beside them.

    .. math:: L = w_{ce}\, \mathrm{CE} + w_{kd}\, \mathrm{KD} + \beta\, L_{\mathrm{SemCKD}}

    DDP, FSDP, Accelerate and trainers of other libraries want everything that is trained in one forward pass of one
    module: this is it. Its parameters are the student's and the criterion's. The teacher is in eval mode whatever
    ``train()`` says, gives no gradients, moves with ``to()``, and is in no state dict or parameter list.
    Copies share it. ``distiller.student.state_dict()`` has the student's own names.

    Args:
        student, teacher: networks that map the same inputs to logits, or to something that has ``logits``.
        criterion: of the maps of both, usually :class:`semckd_kernels.SemCKD`; None for KD of logits alone. See
            :meth:`from_example`, which builds it.
        student_layers, teacher_layers: modules whose outputs are the maps; None takes those of families that are known.
        student_maps, teacher_maps: further options of :class:`semckd_kernels.FeatureMaps`, such as
            ``{"prefix_tokens": 1}``.
        ce_weight, kd_weight, beta: weights of the terms; a term of weight zero is not computed. ``beta`` is 400 for
            CIFAR and 50 for ImageNet in the paper.
        temperature: of KD.
        kd_standardize: KD of standardized logits (Sun et al., CVPR 2024).
        prepare_teacher: take a copy of the teacher that costs less: :func:`semckd_kernels.prepare_teacher`, with the
            options of a mapping such as ``{"dtype": torch.bfloat16}``; ``teacher`` is then that copy.

    Call:
        ``distiller(*inputs, labels=None, **keyword_inputs) -> DistillerOutput``: inputs go to both networks as they
        are. ``labels`` are classes ``[B]`` or shares ``[B, classes]``; without them there is no cross-entropy, and in
        eval mode with no labels nothing but the student runs, and the loss is zero.

    Raises:
        ValueError, TypeError: a layer that does not exist, maps that do not fit the criterion, a network without
            logits, a criterion without maps of both networks.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> def net(width):
        ...     return torch.nn.Sequential(
        ...         torch.nn.Conv2d(3, width, 3, 2), torch.nn.Conv2d(width, 2 * width, 3, 2),
        ...         torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2 * width, 10))
        >>> images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
        >>> layers = {"student_layers": ["0", "1"], "teacher_layers": ["0", "1"]}
        >>> distiller = sk.Distiller.from_example(net(4), net(8), images, batch_size=8, **layers)
        >>> loss, logits, terms, weight = distiller(images, labels=labels)
        >>> loss.backward()
        >>> list(terms), list(weight.shape), any("teacher" in name for name in distiller.state_dict())
        (['ce', 'kd', 'semckd'], [8, 2, 2], False)

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        criterion: nn.Module | None,
        *,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        student_maps: Mapping[str, Any] | None = None,
        teacher_maps: Mapping[str, Any] | None = None,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        beta: float = 400.0,
        temperature: float = 4.0,
        kd_standardize: bool = False,
        prepare_teacher: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__()
        for name, net in (("student", student), ("teacher", teacher)):
            if not isinstance(net, nn.Module):
                raise TypeError(f"{name} must be a module, got {type(net).__name__}")
        if prepare_teacher:
            options = dict(prepare_teacher) if isinstance(prepare_teacher, Mapping) else {}
            inputs = bool((teacher_maps or {}).get("inputs"))
            teacher = prepared(teacher, teacher_layers, inputs=inputs, **options)
        self.student, self.criterion = student, criterion
        self._frozen = _Frozen(teacher.eval().requires_grad_(False))
        self._features: tuple[FeatureMaps, FeatureMaps] | None = None
        self._layers = (student_layers, dict(student_maps or {})), (teacher_layers, dict(teacher_maps or {}))
        self.ce_weight, self.kd_weight, self.beta = ce_weight, kd_weight, beta
        self.temperature, self.kd_standardize = temperature, kd_standardize
        if criterion is not None:
            self._attach()

    @classmethod
    def from_example(
        cls, student: nn.Module, teacher: nn.Module, *inputs: Any, batch_size: int, **options: Any
    ) -> Distiller:
        """Builds the criterion from the maps that both networks give for an example.

        Args:
            student, teacher: as above.
            inputs: one batch of any size, on the networks' device; statistics of BatchNorms stay as they are.
            batch_size: the largest batch of one process; see :class:`semckd_kernels.SemCKD`.
            options: those of :class:`Distiller`, and ``criterion_options`` of :class:`semckd_kernels.SemCKD`.
        """
        criterion_options = options.pop("criterion_options", {})
        distiller = cls(student, teacher, None, **options)
        distiller._attach()
        modes = {module: module.training for module in student.modules()}
        student.eval()
        try:
            with torch.no_grad():
                student(*inputs)
                distiller.teacher(*inputs)
            s_n, t_n = (channels(features.take()) for features in distiller._attached)
        finally:
            for module, training in modes.items():
                module.training = training
        criterion = SemCKD(batch_size, s_n, t_n, **criterion_options)
        first = next(student.parameters(), None)
        distiller.criterion = criterion if first is None else criterion.to(first.device)
        return distiller

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self._frozen.net

    def _attach(self) -> None:
        (student_layers, student_maps), (teacher_layers, teacher_maps) = self._layers
        student = FeatureMaps(self.student, student_layers, **student_maps)
        self._features = student, FeatureMaps(self.teacher, teacher_layers, **teacher_maps)

    @property
    def _attached(self) -> tuple[FeatureMaps, FeatureMaps]:
        """The hooks on this copy's own networks."""
        if self._features is None:
            self._attach()
        assert self._features is not None
        return self._features

    def __getstate__(self) -> dict[str, Any]:
        # a copy hooks its own student when it first runs
        return {**self.__dict__, "_features": None}

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)
        if not self._frozen.borrowed:
            self.teacher._apply(fn)
        return self

    def forward(self, *inputs: Any, labels: Tensor | None = None, **keyword_inputs: Any) -> DistillerOutput:
        if labels is None and not self.training:
            logits = _logits(self.student(*inputs, **keyword_inputs), "student")
            if self._features is not None:
                self._features[0].clear()
            return DistillerOutput(logits.new_zeros(()), logits, {}, None)
        # before the networks run: a copy has no hooks yet
        features = self._attached if self.criterion is not None and self.beta else None
        with torch.no_grad():
            teacher = _logits(self.teacher(*inputs, **keyword_inputs), "teacher")
        logits = _logits(self.student(*inputs, **keyword_inputs), "student")
        terms: dict[str, Tensor] = {}
        weight = None
        if labels is not None and self.ce_weight:
            terms["ce"] = F.cross_entropy(logits, labels)
        if self.kd_weight:
            terms["kd"] = kd_loss(logits, teacher, self.temperature, self.kd_standardize)
        if self.criterion is not None and features is not None:
            student_maps, teacher_maps = (maps.take() for maps in features)
            terms["semckd"], weight, _ = self.criterion(student_maps, teacher_maps)
        weights = {"ce": self.ce_weight, "kd": self.kd_weight, "semckd": self.beta}
        loss = sum((weights[name] * term for name, term in terms.items()), logits.new_zeros(()))
        return DistillerOutput(loss, logits, terms, weight)


class _Frozen:
    """Holds a network that no module may register; copies borrow it, and pickles carry it."""

    def __init__(self, net: nn.Module, borrowed: bool = False) -> None:
        self.net, self.borrowed = net, borrowed

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        # a copy that moves, as an average of parameters on the CPU does, must leave the teacher where it is
        return _Frozen(self.net, borrowed=True)

    def __reduce__(self) -> tuple[type[_Frozen], tuple[nn.Module]]:
        return _Frozen, (self.net,)


def _logits(output: Any, name: str) -> Tensor:
    """The logits of what a network gives: a tensor, something with ``logits``, or a tuple that begins with them."""
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = found.get("logits")
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ValueError(f"the {name} must give logits [B, classes], got a {type(output).__name__}")
    return found
