"""What a distillation method is: a record of its terms and options, the table of all of them, and a chosen one."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ... import SemCKDOutput

Value = float | int | bool | str
# how a term weighs the pairs of student and teacher layers; None where it takes no maps
Association = Literal["attention", "uniform", "pair", "position"]
NAME = re.compile(r"[a-z][a-z0-9_]*")
# columns of a run that are no terms, and what a criterion has for itself
RESERVED = ("loss", "hits", "top1", "attention", "method", "needs_teacher", "terms", "weights")


@dataclass(frozen=True)
class Option:
    """A value that a method brings along: a field of the group ``method`` of its runs' ``config.json``, and a flag.

    Attributes:
        name: ``"mse_weight"`` is the flag ``--mse-weight``.
        default: its type is the option's: float, int, bool or str.
        help: what it does, as ``--help`` says it.
        zero: whether a number may be 0; none is below.
    """

    name: str
    default: Value
    help: str
    zero: bool = False

    def __post_init__(self) -> None:
        if type(self.default) not in (float, int, bool, str):
            raise ValueError(f"option '{self.name}' must be a float, int, bool or str, got {self.default!r}")
        self.check(self.default)

    def check(self, value: Value) -> None:
        """Raises ValueError where a number is out of range."""
        if isinstance(value, (bool, str)):
            return
        if not (math.isfinite(value) and (value > 0 or (self.zero and value == 0))):
            least = "of at least 0" if self.zero else "above 0"
            raise ValueError(f"method.{self.name} must be a finite number {least}, got {value}")


class Output(Protocol):
    """What a network's forward pass gives, such as ``models.Output``: a configuration does without networks."""

    @property
    def logits(self) -> Tensor:
        """Of shape ``[B, classes]``."""

    @property
    def maps(self) -> Sequence[Tensor]:
        """In layer order, each ``[B, c, h, w]``, or tokens ``[B, N, c]``."""


class Given(NamedTuple):
    """What a term is computed from.

    ``teacher`` is there for a term that needs one; ``module`` is what the term has built.
    """

    student: Output
    teacher: Output
    labels: Tensor  # [B]
    method: MethodConfig
    module: Any = None


class Layout(NamedTuple):
    """What a term's module is built for; shapes are those of the maps, without the batch: [c, h, w] or [N, c]."""

    method: MethodConfig
    # samples of one process
    batch_size: int
    student_shapes: Sequence[torch.Size]
    teacher_shapes: Sequence[torch.Size]


@dataclass(frozen=True)
class Term:
    """A term of a loss.

    Attributes:
        name: of its columns (``train_NAME`` in metrics.csv), of its module in checkpoints, and in messages.
        label: its name in charts and sentences.
        weight: what multiplies it: a field of :class:`MethodConfig` by its name, or an option of its own.
        compute: the term as a scalar, before it is weighted; or SemCKD's output, see ``association``.
        build: its module, where it has parameters: they train together with the student's. Called with torch's
            generator seeded.
        options: what it uses beside its weight, as ``weight`` is given.
        needs_teacher: whether it is computed from a teacher's output.
        association: how it weighs pairs of layers: by a learned ``"attention"``, ``"uniform"``, one ``"pair"`` alone,
            or by ``"position"``; None where it takes no maps. The first three have a :class:`SemCKD` as their module
            and compute its output.
    """

    name: str
    label: str
    weight: str | Option
    compute: Callable[[Given], Tensor | SemCKDOutput]
    build: Callable[[Layout], nn.Module] | None = None
    options: tuple[str | Option, ...] = ()
    needs_teacher: bool = True
    association: Association | None = None

    @property
    def weight_name(self) -> str:
        return _name(self.weight)

    @property
    def is_semckd(self) -> bool:
        """Whether it is SemCKD in some form, whose weights of pairs of layers are recorded."""
        return self.association not in (None, "position")

    @property
    def has_attention(self) -> bool:
        """Whether it weighs all pairs of layers, by weights that are learned or fixed."""
        return self.association in ("attention", "uniform")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all values that it uses."""
        return tuple(_name(option) for option in (self.weight, *self.options))


@dataclass(frozen=True)
class Method:
    """A distillation method.

    Attributes:
        name: the choice of ``--method``.
        label: its name in reports and analyses.
        help: what it does, after its name: ``"adds KD of the logits"``.
        terms: of its loss, in the order of their columns: first ``CE``, last the one that makes the method, whose
            weight must be above 0.
        keeps_teacher: whether it needs the teacher's modules as they are, such as BatchNorms in train mode: then
            ``hardware.prepare_teacher`` leaves them.
    """

    name: str
    label: str
    help: str
    terms: tuple[Term, ...]
    keeps_teacher: bool = False

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all values that it uses, each once."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.fields))

    @property
    def options(self) -> tuple[Option, ...]:
        """The options that it brings along."""
        values = (value for term in self.terms for value in (term.weight, *term.options))
        return tuple(dict.fromkeys(value for value in values if isinstance(value, Option)))

    @property
    def association(self) -> Association | None:
        """That of its terms; by position where that is one of several."""
        found = [term.association for term in self.terms if term.association is not None]
        return min(found, key=lambda association: association == "position", default=None)

    @property
    def has_attention(self) -> bool:
        """Whether a term has: see :attr:`Term.has_attention`."""
        return any(term.has_attention for term in self.terms)


METHODS: dict[str, Method] = {}


@dataclass(frozen=True)
class MethodConfig:
    """The loss: a method, and the values of its options. What the method does not use is ignored.

    The fields are in the ``config.json`` of every run; those of ``own`` are the method's :class:`Option`\\ s, which are
    in those of its own runs, beside the others.
    """

    name: str = "ce"
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    temperature: float = 4.0
    beta: float = 400.0
    # student layer and teacher layer of the method "pair", counted from 0
    pair: tuple[int, int] | None = None
    # of SemCKD: the attention's width is batch_size // factor, soft its temperature
    factor: int = 4
    soft: float = 1.0
    # None takes the fastest
    backend: str | None = None
    # KD of z-scores of the logits
    kd_standardize: bool = False
    # of the labels, from 0 to below 1
    label_smoothing: float = 0.0
    # completed by defaults
    own: Mapping[str, Value] = field(default_factory=dict, metadata={"beside": True})

    def __post_init__(self) -> None:
        options = METHODS[self.name].options if self.name in METHODS else ()
        object.__setattr__(self, "own", {option.name: self.own.get(option.name, option.default) for option in options})

    @property
    def record(self) -> Method:
        return METHODS[self.name]

    @property
    def needs_teacher(self) -> bool:
        return self.record.needs_teacher

    def value(self, name: str) -> Any:
        """A field, or an option of the method."""
        return self.own[name] if name in self.own else getattr(self, name)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms that are computed: the first one, which is always measured, and those whose weight is not 0."""
        first, *others = self.record.terms
        return (first, *(term for term in others if self.value(term.weight_name)))

    @property
    def idle(self) -> dict[str, Term]:
        """Names of values that have no effect, with the term of weight 0 that would use them."""
        used = {name for term in self.terms for name in term.fields}
        weights = {term.weight_name for term in self.record.terms}
        idle = {name: term for term in self.record.terms for name in term.fields}
        return {name: term for name, term in idle.items() if name not in used | weights}


COMMON = tuple(item.name for item in dataclasses.fields(MethodConfig) if item.name not in ("name", "own"))


def _name(value: str | Option) -> str:
    return value.name if isinstance(value, Option) else value


def register(method: Method) -> None:
    """Adds a method to those that configurations, and the command line, know by name.

    Raises:
        ValueError: a name is taken or cannot be one; the first term is no cross-entropy.
    """
    names = [method.name, *(term.name for term in method.terms), *(option.name for option in method.options)]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"a name must be lower-case letters, digits and '_', such as 'mse_weight', got '{name}'")
    if METHODS.get(method.name, method) != method:
        raise ValueError(f"there is a method '{method.name}' already: give another name")
    if not method.terms or method.terms[0].name != "ce":
        raise ValueError(
            f"the first term of method '{method.name}' must be the cross-entropy 'ce', with which the test loss is "
            "compared"
        )
    for what in ("name", "label"):
        found = [getattr(term, what) for term in method.terms]
        if twice := [value for value in found if found.count(value) > 1]:
            raise ValueError(f"terms of method '{method.name}' must differ, got the {what} '{twice[0]}' twice")
    if sum(term.is_semckd for term in method.terms) > 1:
        raise ValueError(f"method '{method.name}' must have one attention at most: one is recorded")
    for term in method.terms:
        if term.name in RESERVED or hasattr(nn.Module(), term.name):
            raise ValueError(f"a term must not be named '{term.name}', which is taken: give another name")
    _check_options(method)
    METHODS[method.name] = method


def _check_options(method: Method) -> None:
    others = {option.name: option for other in METHODS.values() for option in other.options}
    for option in method.options:
        if option.name in ("name", "own", *COMMON) or others.setdefault(option.name, option) != option:
            raise ValueError(f"there is an option '{option.name}' already: give another name, or that option itself")
    defaults = {name: getattr(MethodConfig(), name) for name in COMMON}
    defaults |= {option.name: option.default for option in method.options}
    for name in method.fields:
        if name not in defaults:
            raise ValueError(f"method '{method.name}' uses '{name}', which is neither an option nor one of {COMMON}")
    for term in method.terms:
        if type(default := defaults[term.weight_name]) is not float:
            raise ValueError(f"the weight of the term '{term.name}' must be a float, got {default!r} by default")
