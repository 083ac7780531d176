"""What the fused path assumes of the modules whose parameters it takes without calling them.

The kernels compute what ``SimilarityEmbedding`` and ``Projection`` compute as they were made. Users change modules:
they prune, freeze, convert to SyncBatchNorm, hook, parametrize, replace. So each call looks first:

============================  ========================================================================================
types                         exactly those that were made: a subclass, a parametrization or a replacement is another
hooks                         none, of any kind, on any of the modules or on all modules of the process
``forward``                   of the class, and the class's own
convolutions, linear layers   kernel, stride, padding, dilation, groups, padding mode, (no) bias as made
BatchNorms                    affine, with running statistics of its own; momentum, eps and mode are free, each its own
parameters                    plain tensors of the shapes that were made, in ``_parameters`` (pruning and weight_norm
                              put others beside it); the convolutions' of one type
============================  ========================================================================================

What does not fit is computed by calling the modules (the reference path), and a warning names it once. What no path can
compute (parameters on another device, without memory, in shards) is refused by :mod:`.placement`.

Nothing tells of a change, so every call compares the modules with what they were when no fault was found
(:mod:`.snapshot`), and looks at them again where they are not; what tensors are is looked up in every call.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedParameter

from ..pair_loss.checks import PLAIN_TENSORS, is_wrapper
from ..stages.attention import Embedding
from .cross_layer import CrossLayerModule, Projection, SimilarityEmbedding
from .snapshot import Snapshot

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d)
# of the first layer
_BIAS2 = Embedding._fields.index("bias2")
_CONVOLUTION = itemgetter("stride", "padding", "dilation", "groups", "padding_mode")
_CONVOLUTION_1 = ((1, 1), (0, 0), (1, 1), 1, "zeros")
_CONVOLUTION_3 = ((1, 1), (1, 1), (1, 1), 1, "zeros")
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
# what an attribute of an instance would take the place of, of the modules of each type
_METHODS: dict[Any, tuple[str, ...]] = {
    nn.Conv2d: ("forward", "_conv_forward", "weight", "bias"),
    nn.BatchNorm2d: ("forward", "_check_input_dim", "weight", "bias", "running_mean", "running_var"),
    nn.ReLU: ("forward",),
    nn.Linear: ("forward", "weight", "bias"),
    nn.Sequential: ("forward",),
    Projection: ("forward", "regressor"),
    SimilarityEmbedding: ("forward", "linear1", "linear2"),
}
_FORWARDS = [(kind, kind.forward) for kind in _METHODS]


class Parts(NamedTuple):
    """Parameters and buffers in the order that the fused operator takes them."""

    embedding: list[Tensor]  # an Embedding of each layer, students first
    projection: list[Tensor]  # a Projection of each pair
    convolutions: list[Tensor]  # the weights of convolutions among these
    norms: list[nn.BatchNorm2d]  # two of each pair
    running: list[Tensor]  # running_mean, running_var of each norm

    @property
    def tensors(self) -> list[Tensor]:
        return self.embedding + self.projection + self.running


def gather(module: CrossLayerModule) -> Parts:
    """Parameters and buffers of a module without :func:`fault`."""
    parts = Parts([], [], [], [], [])
    for _, mlp in _embeddings(module):
        layers = mlp._modules
        for layer in (layers["linear1"], layers["linear2"]):
            of = layer._parameters  # type: ignore[union-attr]
            parts.embedding.extend((of["weight"], of["bias"]))  # type: ignore[arg-type]
    for name in module._projection_names.values():
        sequence = module._modules[name]._modules["regressor"]  # type: ignore[union-attr]
        for layer in sequence._modules.values():  # type: ignore[union-attr]
            if type(layer) is nn.Conv2d:
                parts.projection.append(layer._parameters["weight"])  # type: ignore[arg-type]
                parts.convolutions.append(parts.projection[-1])
            elif type(layer) is nn.BatchNorm2d:
                of, buffers = layer._parameters, layer._buffers
                parts.projection.extend((of["weight"], of["bias"]))  # type: ignore[arg-type]
                parts.norms.append(layer)
                parts.running.extend((buffers["running_mean"], buffers["running_var"]))  # type: ignore[arg-type]
    return parts


def look(module: CrossLayerModule) -> tuple[str | None, Parts | None]:
    """A module's fault and, where it has none, its parts."""
    # torch.compile asks for the fault once, when it traces, and takes the answer as a constant
    found, parts = (fault(module), None) if torch.compiler.is_compiling() else _look(module)
    if found is None and parts is None:
        parts = gather(module)
    return found, parts


def fault(module: CrossLayerModule) -> str | None:
    """What the fused path cannot compute, as ``"NAME is ..."``; None where all is as it was made."""
    return _look(module)[0]


fault._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _look(module: CrossLayerModule) -> tuple[str | None, Parts | None]:
    found, parts = _find(module)
    if found is not None:
        # torch refuses backward hooks before a ReLU in place, and forward hooks would find their maps changed
        for layer in module.modules():
            if type(layer) is nn.ReLU:
                layer.inplace = False
    return found, parts


def _find(module: CrossLayerModule) -> tuple[str | None, Parts | None]:
    if any(_GLOBAL_HOOKS):
        return "every module of this process has a global hook", None
    for kind, forward in _FORWARDS:
        if kind.forward is not forward:
            return f"{kind.__name__}.forward was replaced", None
    snapshot, parts = _KNOWN.get(module, (None, None))
    if snapshot is None or parts is None or not snapshot.holds(module):
        if found := _embedding_fault(module) or _projection_fault(module):
            return found, None
        parts = gather(module)
        _KNOWN[module] = Snapshot(module, parts.tensors), parts
    found = _parameter_fault(module, parts)
    return found, None if found else parts


# modules of which types, hooks, methods and settings were found to be as they were made, and their parts
_KNOWN: WeakKeyDictionary[nn.Module, tuple[Snapshot, Parts]] = WeakKeyDictionary()
# what has been said, and of which module
_SAID: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def call_modules_instead(module: CrossLayerModule, backend: str, asked_for: str | None, reason: str) -> None:
    """Warns, once a module and reason, that the reference path serves it; refuses where a backend was asked for.

    Raises:
        RuntimeError: ``backend`` was asked for, by ``asked_for`` or ``SEMCKD_BACKEND``.
    """
    if asked_for is not None or os.environ.get("SEMCKD_BACKEND"):
        raise RuntimeError(
            f"the backend '{backend}' cannot serve this criterion: {reason}; backend='reference' calls the modules as "
            f"they are"
        )
    said = _SAID.setdefault(module, set())
    if reason not in said:
        said.add(reason)
        warnings.warn(
            f"the reference path, which calls each module, serves this criterion, since the fused one does not: "
            f"{reason}",
            RuntimeWarning,
            stacklevel=2,
        )


call_modules_instead._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _embeddings(module: CrossLayerModule) -> Iterator[tuple[str, nn.Module]]:
    names = [f"query_weight{i}" for i in range(module.s_len)] + [f"key_weight{j}" for j in range(module.t_len)]
    return ((name, module._modules[name]) for name in names)  # type: ignore[misc]


def _embedding_fault(module: CrossLayerModule) -> str | None:
    for name, mlp in _embeddings(module):
        if found := _changed(mlp, SimilarityEmbedding):
            return f"{name} {found}"
        for where in ("linear1", "linear2"):
            layer: Any = mlp._modules[where]
            if found := _changed(layer, nn.Linear) or _SETTINGS[nn.Linear](layer.__dict__):
                return f"{name}.{where} {found}"
    return None


def _projection_fault(module: CrossLayerModule) -> str | None:
    for name in module._projection_names.values():
        projection: Any = module._modules[name]
        if found := _changed(projection, Projection):
            return f"{name} {found}"
        sequence = projection._modules["regressor"]
        if found := _changed(sequence, nn.Sequential):
            return f"{name}.regressor {found}"
        layers = sequence._modules
        if len(layers) != len(_LAYERS):
            return f"{name}.regressor has {len(layers)} layers, not {len(_LAYERS)}"
        for (where, layer), kind in zip(layers.items(), _LAYERS, strict=True):
            if found := _changed(layer, kind) or _SETTINGS[kind](layer.__dict__):
                return f"{name}.regressor.{where} {found}"
    return None


def _changed(module: Any, kind: type[nn.Module]) -> str | None:
    """How a module's type, hooks or methods are not those it was made with."""
    if type(module) is kind:
        d = module.__dict__
        has_hooks = d["_forward_hooks"] or d["_forward_pre_hooks"] or d["_backward_hooks"] or d["_backward_pre_hooks"]
        if not has_hooks and d.keys().isdisjoint(_METHODS[kind]):
            return None
    return _explain_change(module, kind)


def _explain_change(module: Any, kind: type[nn.Module]) -> str:
    if type(module) is not kind:
        return f"is a {type(module).__name__}, not a {kind.__name__}"
    for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"):
        if hooks := module.__dict__[f"_{name}"]:
            hook = next(iter(hooks.values()))
            return f"has {name.replace('_', ' ')} ({getattr(hook, '__name__', type(hook).__name__)})"
    return f"has its own '{next(name for name in _METHODS[kind] if name in module.__dict__)}'"


def _missing(tensors: dict[str, Tensor | None], name: str) -> str | None:
    return f"has no {name}" if tensors.get(name) is None else None


def _convolution_fault(attributes: dict[str, Any]) -> str | None:
    of = attributes["_parameters"]
    settings = _CONVOLUTION(attributes)
    # the kernel's size is the weight's, which is looked at later
    if settings != (_CONVOLUTION_3 if attributes["kernel_size"] == (3, 3) else _CONVOLUTION_1):
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return "has " + ", ".join(f"{name}={value!r}" for name, value in zip(names, settings, strict=True))
    return _missing(of, "weight") or ("has a bias" if of.get("bias") is not None else None)


def _norm_fault(attributes: dict[str, Any]) -> str | None:
    of, buffers = attributes["_parameters"], attributes["_buffers"]
    if not attributes["track_running_stats"]:
        return "does not track running statistics"
    if type(attributes["eps"]) not in (float, int) or type(attributes["momentum"]) not in (float, int, type(None)):
        return "has an eps or a momentum that is no number"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if buffers.get(name) is None:
            return f"has no {name}"
    return _missing(of, "weight") or _missing(of, "bias")


def _linear_fault(attributes: dict[str, Any]) -> str | None:
    of = attributes["_parameters"]
    return _missing(of, "weight") or _missing(of, "bias")


def _no_fault(attributes: dict[str, Any]) -> str | None:
    return None


_SETTINGS: dict[type[nn.Module], Callable[[dict[str, Any]], str | None]] = {
    nn.Linear: _linear_fault,
    nn.Conv2d: _convolution_fault,
    nn.BatchNorm2d: _norm_fault,
    nn.ReLU: _no_fault,
}


def _parameter_fault(module: CrossLayerModule, parts: Parts) -> str | None:
    """Whether parameters and buffers are plain tensors, of the shapes they were made with, each in one place."""
    tensors = parts.tensors
    if not {*map(type, tensors)} <= PLAIN_TENSORS:
        for x in tensors:
            if is_wrapper(x) or isinstance(x, UninitializedParameter):
                return f"{_name_of(module, x)} is a {type(x).__name__}"
    dim = parts.embedding[_BIAS2].shape[0]
    expected = _shapes(module.batch_size, dim, (*module.s_n,), (*module.t_n,))
    if [x.shape for x in tensors] != expected:
        n = next(n for n, x in enumerate(tensors) if x.shape != expected[n])
        return f"{_name_of(module, tensors[n])} is {list(tensors[n].shape)}, not {list(expected[n])}"
    if len({*map(id, parts.running)}) < len(parts.running):
        return "a BatchNorm is part of two projections"
    if len({x.dtype for x in parts.convolutions}) > 1:
        return "convolutions are of several types"
    return None


@functools.lru_cache(maxsize=64)
def _shapes(batch_size: int, dim: int, s_n: tuple[int, ...], t_n: tuple[int, ...]) -> list[torch.Size]:
    """Of the tensors that :func:`gather` gives, in their order."""
    embedding: list[tuple[int, ...]] = [(2 * dim, batch_size), (2 * dim,), (dim, 2 * dim), (dim,)]
    shapes = embedding * (len(s_n) + len(t_n))
    pairs = [(c, t, 2 * t) for c in s_n for t in t_n]
    for c, t, k in pairs:
        shapes += [(k, c, 1, 1), (k,), (k,), (k, k, 3, 3), (k,), (k,), (t, k, 1, 1)]
    shapes += [(k,) for _, _, k in pairs for _ in range(4)]
    return [torch.Size(shape) for shape in shapes]


def _name_of(module: CrossLayerModule, x: Tensor) -> str:
    named = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, tensor in named if tensor is x), "a parameter")
