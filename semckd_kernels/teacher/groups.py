"""Groups of operations that one convolution can do: convolution, BatchNorm, addition, ReLU, in this order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from ..backends.cpu import frozen
from .graphs import called, is_addition, is_nothing, is_relu, may_write, writes_to

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass
class Watched:
    """Modules whose inputs or outputs somebody asks for."""

    outputs: Container[nn.Module]
    inputs: Container[nn.Module]

    def loses_output(self, module: nn.Module) -> bool:
        return module in self.outputs or has_hooks(module)

    def loses_input(self, module: nn.Module) -> bool:
        return module in self.inputs or has_hooks(module)


@dataclass
class Group:
    """What one convolution does, as nodes of a graph; ``passed`` are nodes in between that do nothing."""

    conv: fx.Node
    norm: fx.Node | None = None
    add: fx.Node | None = None
    relu: fx.Node | None = None
    passed: list[fx.Node] = field(default_factory=list)

    @property
    def nodes(self) -> list[fx.Node]:
        """In the order of computation."""
        return [node for node in (self.conv, self.norm, self.add, self.relu) if node is not None]

    @property
    def residual(self) -> fx.Node | None:
        """What is added."""
        if self.add is None:
            return None
        own = {*self.nodes, *self.passed}
        (other,) = [x for x in self.add.args if isinstance(x, fx.Node) and x not in own]
        return other

    def give_up_changes(self, root: nn.Module, counts: Counter[nn.Module]) -> None:
        """Leaves what modules can do without another forward pass around them."""
        relu = None if self.relu is None else called(self.relu, root)
        if self.add is not None or (self.relu is not None and (relu is None or counts[relu] != 1)):
            self.add = self.relu = None


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called with what a module is given, or gives."""
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(module._forward_hooks or module._forward_pre_hooks or backward)


def find(
    graph: fx.Graph, root: nn.Module, counts: Counter[nn.Module], watched: Watched, whole: fx.Graph, net: nn.Module
) -> Iterator[Group]:
    """The groups of one module's forward pass.

    Args:
        graph: of the forward pass of ``root``, each of whose submodules is a node.
        counts: how often modules are called in the whole network.
        watched: what has to stay as it is.
        whole: the graph of the whole network ``net``, which has to have the same chain of operations.
    """
    of_module = {called(node, net): node for node in whole.nodes}
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        module = called(node, root)
        if type(module) is not nn.Conv2d or counts[module] != 1 or has_hooks(module) or module not in of_module:
            continue
        group = _extended(node, root, counts, watched, _operations(of_module[module], net))
        if group.add is None or (group.add not in taken and _can_wait(group, root)):
            taken.update(group.nodes)
        else:
            group.add = group.relu = None
        if group.nodes != [node] or frozen.has_form(module):
            yield group


def _operations(node: fx.Node, net: nn.Module) -> list[nn.Module | str]:
    """What happens to the result of a node in turn, as long as only one operation uses it: modules, "add", "relu"."""
    found: list[nn.Module | str] = []
    while len(node.users) == 1:
        (node,) = node.users
        module = called(node, net)
        if is_nothing(node, net):
            continue
        if not (kind := module or ("add" if is_addition(node) else "relu" if is_relu(node) else None)):
            break
        found.append(kind)
    return found


def _extended(
    conv: fx.Node, root: nn.Module, counts: Counter[nn.Module], watched: Watched, whole: list[nn.Module | str]
) -> Group:
    """A convolution with what can be done in it: each step hides the one before."""
    group, last = Group(conv), conv
    for operation in whole:
        between = []
        # what is between gives the same, and is looked at just as well
        while _is_free(last, root, watched) and len(last.users) == 1:
            before, (last,) = last, last.users
            if not is_nothing(last, root):
                break
            between.append(last)
        else:
            return group
        module = called(last, root)
        if module is not None and (module is not operation or watched.loses_input(module)):
            return group
        if type(module) in NORMS and group.nodes == [conv]:
            if module is None or counts[module] != 1 or not _is_foldable(module):
                return group
            group.norm = last
        elif operation == "add" and group.add is None and _adds_to(last, before):
            group.add = last
        elif type(module) is nn.ReLU or (is_relu(last) and operation == "relu"):
            group.relu = last
        else:
            return group
        group.passed += between
        if group.relu is not None:
            return group
    return group


def _adds_to(node: fx.Node, result: fx.Node) -> bool:
    """Whether a node adds something else to a result, into nothing that others may see."""
    return is_addition(node) and node.args[0] is not node.args[1] and writes_to(node) in (None, result)


def _is_free(node: fx.Node, root: nn.Module, watched: Watched) -> bool:
    module = called(node, root)
    return module is None or not watched.loses_output(module)


def _is_foldable(norm: nn.Module | None) -> bool:
    """Statistics of the batch are no constants."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None


def _can_wait(group: Group, root: nn.Module) -> bool:
    """Whether the convolution may run where the addition is: nothing on the way there may change its input."""
    node = group.conv.next
    own = {*group.nodes, *group.passed}
    while node is not group.add:
        if node not in own and may_write(node, root):
            return False
        node = node.next
    return True
