"""Optimizers by name: those of ``torch.optim``, such as ``adamw``, and timm's, as ``timm/lamb``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..features import nearest
from ..install import pip_install
from .errors import first_line

if TYPE_CHECKING:
    from .config import RecipeConfig

TIMM = "timm/"
# what a recipe sets of an optimizer that knows it
FIELDS = ("momentum", "betas", "eps")
# one kernel updates all parameters, and also in a CUDA graph: their states begin as zeros
FUSED = ("sgd", "adam", "adamw")
# they call the model themselves, take sparse gradients, or gradients of whole data sets
_NOT_HERE = ("lbfgs", "sparseadam", "rprop")


def names() -> dict[str, type[Optimizer]]:
    """torch's optimizers by their names in lower case."""
    known = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {
        name: kind
        for name, kind in known.items()
        if issubclass(kind, Optimizer) and kind is not Optimizer and name not in _NOT_HERE
    }


def check(name: str) -> None:
    """Raises ValueError where torch has no such optimizer; timm's are looked up once one is made."""
    if not name.startswith(TIMM) and name.lower() not in names():
        near = nearest(name.lower(), names())
        raise ValueError(f"recipe.optimizer must be one of {', '.join(names())}, or timm/NAME, got '{name}'{near}")


def fields(name: str) -> tuple[str, ...]:
    """The fields of a recipe, out of :data:`FIELDS`, that an optimizer takes.

    Raises:
        ValueError: timm is not installed, has no such optimizer, or one that needs second derivatives.
    """
    if name.startswith(TIMM):
        info = _timm_info(name)
        known = {"momentum": info.has_momentum, "betas": info.has_betas, "eps": info.has_eps}
        return tuple(field for field in FIELDS if known[field])
    parameters = inspect.signature(names()[name.lower()].__init__).parameters
    return tuple(field for field in FIELDS if field in parameters)


def make(module: nn.Module, recipe: RecipeConfig, graphed: bool = False) -> Optimizer:
    """The recipe's optimizer of all parameters of a module that are trained.

    Args:
        module: student and criterion.
        recipe: without ``betas`` and ``eps`` the optimizer has its own.
        graphed: whether a CUDA graph will hold its updates. That holds numbers as they were at its capture, so that the
            learning rate is a tensor.

    Raises:
        ValueError: the optimizer does not exist, or refuses a value or the parameters.
    """
    parameters: list[Any] = list(_groups(module, recipe))
    values = {name: getattr(recipe, name) for name in fields(recipe.optimizer)}
    values = {name: value for name, value in values.items() if value is not None}
    values |= {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    try:
        optimizer = _made(recipe.optimizer, parameters, values, graphed)
    # whatever a constructor raises, its own message says best what does not fit
    except Exception as error:
        raise ValueError(f"optimizer '{recipe.optimizer}': {first_line(error)}") from error
    if graphed:
        # put in later, since the constructor would wait for the device to look at it
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), recipe.lr, device=group["params"][0].device)
    if isinstance(optimizer, torch.optim.SGD) and recipe.momentum:
        # torch leaves these uninitialised until a first step, which fp16's scaler may skip
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def check_state(optimizer: Optimizer) -> None:
    """Raises ValueError where what was loaded is of parameters of other shapes; torch looks at their number alone.

    A fused kernel would write past the end of what is too small.
    """
    # others keep rows and columns instead of matrices, or blocks, and look at shapes as they compute
    elementwise = type(optimizer).__module__.startswith("torch.") and not isinstance(optimizer, torch.optim.Adafactor)
    for p, kept in optimizer.state.items():
        for value in kept.values():
            if torch.is_tensor(value) and elementwise and value.shape not in (p.shape, ()):
                raise ValueError("the optimizer's state is of parameters of other shapes")


def _made(name: str, parameters: list[Any], values: dict[str, Any], graphed: bool) -> Optimizer:
    if name.startswith(TIMM):
        timm: Any = importlib.import_module("timm.optim")
        of_timm: Optimizer = timm.create_optimizer_v2(parameters, opt=name.removeprefix(TIMM), **values)
        return of_timm
    kind: Any = names()[name.lower()]
    if name.lower() in FUSED:
        values["fused"] = True
        if "capturable" in inspect.signature(kind.__init__).parameters:
            values["capturable"] = graphed
    made: Optimizer = kind(parameters, **values)
    return made


def _groups(module: nn.Module, recipe: RecipeConfig) -> Iterator[Any]:
    """All trained parameters, or two groups of them: biases and norms without weight decay, and the others."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if recipe.decay_all:
        yield from named.values()
        return
    # what networks name themselves, such as embeddings of positions
    spared = {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if callable(without := getattr(part, "no_weight_decay", None))
        for name in without()
    }
    for spares in (True, False):
        group = [p for name, p in named.items() if (p.ndim <= 1 or name in spared) == spares]
        if group:
            yield {"params": group, "weight_decay": 0.0} if spares else {"params": group}


def _timm_info(name: str) -> Any:
    try:
        timm: Any = importlib.import_module("timm.optim")
    except ImportError as error:
        raise ValueError(f"optimizer '{name}': timm is not installed: run {pip_install('timm')}") from error
    short = name.removeprefix(TIMM)
    try:
        info = timm.get_optimizer_info(short)
    except ValueError:
        raise ValueError(f"timm has no optimizer '{short}'{nearest(short, timm.list_optimizers())}") from None
    if info.second_order:
        raise ValueError(f"optimizer '{name}' needs second derivatives, which the fused criterion does not have")
    return info
