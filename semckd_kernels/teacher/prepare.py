"""A teacher made ready: frozen, folded, in the type and layout that serve it best."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..features import LOST, default_layers, forget_copies, named_modules, unwrapped
from . import graphs, groups
from .convolution import FoldedNorm, FrozenConv2d
from .groups import Group, Watched


def prepare_teacher(
    net: nn.Module,
    layers: Sequence[str] | None = None,
    *,
    inputs: bool = False,
    dtype: torch.dtype | None = None,
    channels_last: bool | None = None,
    compile: bool | Mapping[str, Any] = False,
    inplace: bool = False,
) -> nn.Module:
    """A copy of a frozen network that gives the same results, equal to rounding, in less time.

    It is in eval mode and without gradients. BatchNorms are folded into the convolutions before them (in fp64), and
    ReLUs and additions behind these are done on their way out. On the CPU, 3x3 convolutions of stride 1 are ours, with
    weights that are transformed once; on an NVIDIA GPU cuDNN adds and clips. Modules keep their names and their hooks:
    what became part of a convolution is an identity at its place. What is not of this form stays as it is: BatchNorm in
    front of a convolution or with statistics of the batch, modules with hooks, modules that are used twice, results
    that several modules read.

    Args:
        net: the teacher; of a wrapped one (``DistributedDataParallel``, ``torch.compile``) what is inside.
        layers: paths of the modules whose outputs are asked for, as for :class:`semckd_kernels.FeatureMaps`: nothing is
            done to them that would change these. Stages and blocks need not be named. Of a module that is not named,
            and whose output is part of a convolution now, ``FeatureMaps`` says so. None takes the layers that
            ``FeatureMaps`` takes.
        inputs: ``layers`` are asked for what they are given instead.
        dtype: of weights, computations and maps, such as ``torch.bfloat16``; inputs are cast. None keeps the net's.
        channels_last: the layout of weights, and thereby of maps; None takes it on the CPU, where our kernels read it.
        compile: call ``net.compile()``, with the options of a mapping.
        inplace: change ``net`` itself. Otherwise it stays as it is, and both are in memory.

    Returns:
        The network. Its state dict has no BatchNorms, and biases: it fits another prepared copy, not the teacher. Load
        weights before; a teacher's state dict is refused afterwards.

    A network whose forward pass ``torch.fx`` cannot trace, or has optional arguments, keeps its operations, and a
    warning says why.

    Raises:
        ValueError, TypeError: a layer that does not exist, a type that is no floating one.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> conv, norm = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)
        >>> net = torch.nn.Sequential(conv, norm, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 10)).eval()
        >>> prepared, images = sk.prepare_teacher(net), torch.randn(2, 3, 3, 3)
        >>> torch.allclose(prepared(images), net(images), atol=1e-5), list(prepared.state_dict())
        (True, ['0.weight', '0.bias', '4.weight', '4.bias'])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    net = unwrapped(net)
    if not inplace:
        net = copy.deepcopy(net)
        forget_copies(net)
    layers = default_layers(net) if layers is None else layers
    modules = named_modules(net, layers)
    asked = {modules[name] for name in layers}
    net.eval().requires_grad_(False)
    if dtype == torch.float64:
        # before: folding rounds to the type that weights have
        net.to(dtype)
    try:
        if any(isinstance(module, nn.Conv2d) for module in net.modules()):
            _fold(net, Watched(set(), asked) if inputs else Watched(asked, set()))
    except graphs.Untraceable as error:
        warnings.warn(
            f"prepare_teacher: operations of {type(net).__name__} stay as they are, since torch.fx cannot trace it "
            f"({error})",
            stacklevel=2,
        )
    _place(net, dtype, channels_last)
    if compile:
        net.compile(**(compile if isinstance(compile, Mapping) else {}))
    return net


def folded(net: nn.Module) -> dict[str, int] | None:
    """What is part of the convolutions of a prepared network: how many of its operations; None of any other network.

    ``winograd`` counts convolutions that have transformed weights, for the CPU.
    """
    convolutions = [m for m in net.modules() if isinstance(m, FrozenConv2d)]
    if not convolutions:
        return None
    return {
        "convolutions": len(convolutions),
        "norms": sum(isinstance(m, FoldedNorm) for m in net.modules()),
        "relus": sum(m.relu for m in convolutions),
        "winograd": sum(m.transformed is not None for m in convolutions),
    }


def _place(net: nn.Module, dtype: torch.dtype | None, channels_last: bool | None) -> None:
    first = next(net.parameters(), None)
    if channels_last is None:
        channels_last = first is not None and first.device.type == "cpu"
    if dtype is not None:
        net.to(dtype)
        net.register_forward_pre_hook(_Cast(dtype), with_kwargs=True)
    if channels_last:
        net.to(memory_format=torch.channels_last)


class _Cast:
    """A hook that casts floating inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(self._cast, args)), {name: self._cast(value) for name, value in kwargs.items()}

    def _cast(self, x: Any) -> Any:
        return x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _fold(net: nn.Module, watched: Watched) -> None:
    """Puts what follows convolutions into them."""
    whole, unusual = graphs.trace(net)
    counts = graphs.calls(whole, net)
    found: list[tuple[nn.Module, fx.Graph, list[Group]]] = []
    for module in net.modules():
        if not any(True for _ in module.children()) or graphs.looks_at_types(module):
            continue
        try:
            graph, _ = graphs.trace(module, shallow=True)
        except graphs.Untraceable:
            # a list, or a part that decides by its inputs; others are looked at nevertheless
            continue
        own = list(groups.find(graph, module, counts, watched, whole, net))
        if module in unusual or any(node.op == "get_attr" for node in graph.nodes):
            # arguments that its own graph knows nothing of, or parameters that a changed forward pass would hold on to
            # when the module moves
            for group in own:
                group.give_up_changes(module, counts)
        found.append((module, graph, own))
    done = Counter(
        graphs.called(group.relu, module) for module, _, own in found for group in own if group.relu is not None
    )
    whole_relus = {relu for relu, count in done.items() if relu is not None and count == counts[relu]}
    for module, graph, own in found:
        _change(module, graph, own, whole_relus)
    for relu in whole_relus:
        relu.__class__ = nn.Identity
        del relu.inplace


def _change(module: nn.Module, graph: fx.Graph, own: Sequence[Group], whole_relus: set[nn.Module]) -> None:
    """Does what groups say to one module and its own convolutions.

    Args:
        whole_relus: ReLUs all of whose uses are part of a group: they become identities, and are still called.
    """
    changed = False
    for group in own:
        conv, norm, relu = (
            None if node is None else graphs.called(node, module) for node in (group.conv, group.norm, group.relu)
        )
        assert isinstance(conv, nn.Conv2d)
        _mark(group, module, keeps_relu=relu in whole_relus)
        FrozenConv2d.take_over(conv, norm, group.relu is not None)
        if group.add is not None:
            _put_at_addition(graph, group)
            changed = True
        if group.relu is not None and relu not in whole_relus:
            group.relu.replace_all_uses_with(cast(fx.Node, group.relu.args[0]))
            graph.erase_node(group.relu)
            changed = True
    if changed:
        module.forward = graphs.ChangedForward(module, graph)  # type: ignore[method-assign]


def _put_at_addition(graph: fx.Graph, group: Group) -> None:
    """The convolution with a second input, in place of convolution, BatchNorm and addition."""
    add, residual = group.add, group.residual
    assert add is not None
    last, source = next(x for x in add.args if x is not residual), group.conv.args[0]
    with graph.inserting_before(add):
        node = graph.call_module(str(group.conv.target), (source, residual))
    add.replace_all_uses_with(node)
    graph.erase_node(add)
    while isinstance(last, fx.Node) and last is not source:
        before = last.args[0]
        graph.erase_node(last)
        last = before


def _mark(group: Group, module: nn.Module, keeps_relu: bool) -> None:
    """Writes to modules what nobody can ask them for any more."""
    lost = {group.conv: {"output"} if len(group.nodes) > 1 else set()}
    if group.norm is not None:
        ends = group.add is None and group.relu is None
        lost[group.norm] = {"input"} if ends else {"input", "output"}
    lost |= {node: {"input", "output"} for node in group.passed}
    if group.relu is not None:
        lost[group.relu] = {"input"} if keeps_relu else {"input", "output"}
    for node, what in lost.items():
        if (owner := graphs.called(node, module)) is not None:
            setattr(owner, LOST, getattr(owner, LOST, frozenset()) | what)
