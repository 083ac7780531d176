"""What calls what in a network: ``torch.fx`` graphs, and forward passes that are made of a changed graph."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from .convolution import FrozenConv2d

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
# what gives its input in eval mode
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Untraceable(Exception):
    """The forward pass of a module depends on more than shapes of its inputs; the message is torch's first line."""


class _Tracer(fx.Tracer):
    """Traces without running hooks, which would be given proxies; notes modules that are called in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.unusual: set[nn.Module] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FrozenConv2d) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if kwargs or not all(isinstance(x, fx.Proxy) for x in args) or _required(m) != len(args):
            self.unusual.add(m)
        return super().call_module(m, m.forward, args, kwargs)


class _ShallowTracer(_Tracer):
    """Takes every module inside of the traced one for a single operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Traced(NamedTuple):
    """What a forward pass does."""

    graph: fx.Graph
    # modules that are given something else than a tensor for every argument that they have
    unusual: set[nn.Module]


def trace(root: nn.Module, shallow: bool = False) -> Traced:
    """The operations of a forward pass, or shallow: calls of the modules inside of it.

    Raises:
        Untraceable: they cannot be known beforehand.
    """
    if not shallow and not _required(root):
        raise Untraceable("its forward pass has optional arguments")
    tracer = _ShallowTracer() if shallow else _Tracer()
    try:
        return Traced(tracer.trace(root), tracer.unusual)
    except Exception as error:
        # whatever a forward pass may raise that is given proxies for tensors
        first = next(iter(str(error).splitlines()), "")
        raise Untraceable(f"{type(error).__name__}: {first}" if first else type(error).__name__) from error


def looks_at_types(module: nn.Module) -> bool:
    """Whether a forward pass asks for types of values: it would take proxies for something else than tensors."""
    return "isinstance" in getattr(getattr(type(module).forward, "__code__", None), "co_names", ())


def _required(module: nn.Module) -> int:
    """The number of arguments of a forward pass, all of which it needs; 0 where it takes others as well."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(parameters) if all(p.kind in plain and p.default is p.empty for p in parameters) else 0


def calls(graph: fx.Graph, root: nn.Module) -> Counter[nn.Module]:
    """How often each module is called, or its parameters are used by somebody else."""
    found: Counter[nn.Module] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            found[root.get_submodule(node.target)] += 1
        elif node.op == "get_attr":
            found[root.get_submodule(node.target.rpartition(".")[0])] += 1
    return found


def called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls with one tensor."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return root.get_submodule(str(node.target))


def is_addition(node: fx.Node) -> bool:
    """Whether a node is the sum of two results."""
    kind = node.op in ("call_function", "call_method") and node.target in _ADDITIONS
    return kind and not node.kwargs and len(node.args) == 2 and all(isinstance(x, fx.Node) for x in node.args)


def writes_to(node: fx.Node) -> object:
    """What an addition writes to; None where its result is new."""
    return node.args[0] if node.target in (operator.iadd, "add_") else None


def is_relu(node: fx.Node) -> bool:
    """Whether a node is a ReLU that is no module."""
    is_one = node.op in ("call_function", "call_method") and node.target in _RELUS
    return is_one and len(node.args) == 1 and not node.kwargs.keys() - {"inplace"}


def is_nothing(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node gives what it is given."""
    return type(called(node, root)) in _NOTHING


def may_write(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may change a tensor that it is given."""
    if node.op == "call_module":
        return any(getattr(m, "inplace", False) for m in root.get_submodule(str(node.target)).modules())
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or (node.target is getattr(operator, name, None) and name.startswith("i"))
    return node.op == "call_function" and (in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs)


class ChangedForward:
    """In place of a module's own ``forward``: a graph over the same submodules, which it does not own.

    Copies of the module by deepcopy or pickle have copies of it, over the copy's submodules.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        graph.lint()
        self._graph_module = fx.GraphModule(module, graph, type(module).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._graph_module.forward(*args, **kwargs)
