"""Feature maps out of any network: hooks that leave the network, its names and its checkpoints as they are."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

# layers of families whose stages are modules with names, by what a network must have
_KNOWN = (
    [f"layer{n}" for n in range(1, 5)],
    [f"features.denseblock{n}" for n in range(1, 5)],
    [f"trunk_output.block{n}" for n in range(1, 5)],
    [f"stage{n}" for n in range(2, 5)],
    [f"layer{n}" for n in range(1, 4)],
)
# the ends of paths of the lists that hold a transformer's blocks, or a backbone's stages
_LISTS = ("encoder.stages", "encoder.layers", "encoder.layer", "stages", "blocks", "layers")
# layers taken of a list that has more
LIMIT = 4
# what ends no stage: its output is that of the stage before it, at a lower resolution
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# attribute of modules that were prepared: "input", "output" or both, where that is another value since
LOST = "_lost_in_preparation"


class FeatureMaps:
    """The outputs of some modules of a network in its latest forward pass.

    The network stays the caller's: it is not wrapped, its state dict keeps its names, and the hooks are gone after
    :meth:`close`, at the end of a ``with`` block, and when this object is. It may be wrapped by
    ``DistributedDataParallel``, ``DataParallel`` on one device or ``torch.compile``, and may take and give anything.

    Args:
        net: the network; of a wrapped one, the layers are named as inside of the wrapper.
        layers: paths of modules, such as ``"layer1"`` or ``"features.3"``, each of which runs once in a forward pass.
            None takes the stages of families that are known (see :func:`default_layers`).
        inputs: take what the modules are given instead of what they give.
        prefix_tokens: tokens before those of the image (class token, registers), which are left out.
        nhwc: four-dimensional outputs are ``[B, h, w, c]``, as those of Swin transformers are; they are turned.
        grid: ``(h, w)`` of tokens that are no square; they become maps ``[B, c, h, w]``.

    A module's output may be a tensor, or a tuple, mapping or dataclass of Transformers, whose first tensor is taken.

    Raises:
        ValueError: no layers, a layer that does not exist (with the nearest names), or one named twice. In a forward
            pass or in :meth:`take`: a layer did not run, or ran more than once; its output is no map; a later operation
            overwrote it in place (seen where autograd counts versions: not in inference mode or compiled code).

    Example:
        >>> import torch, semckd_kernels as sk
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2))
        >>> with sk.FeatureMaps(net, ["1", "2"]) as features:
        ...     _ = net(torch.randn(2, 3, 9, 9))
        ...     maps = features.take()
        >>> [list(x.shape) for x in maps], sk.channels(maps)
        ([[2, 8, 7, 7], [2, 16, 3, 3]], [8, 16])
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        inputs: bool = False,
        prefix_tokens: int = 0,
        nhwc: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> None:
        net = unwrapped(net)
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of module paths, got the string '{layers}'")
        if layers is None and not (layers := default_layers(net)):
            raise ValueError(f"layers: name the modules of {type(net).__name__} whose outputs are its maps")
        if not layers:
            raise ValueError("layers: name at least one module of the network")
        self.layers = tuple(layers)
        self.prefix_tokens, self.nhwc, self.grid = prefix_tokens, nhwc, grid
        self._maps: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._recording = True
        modules = named_modules(net, self.layers)
        _check_kept(modules, self.layers, "input" if inputs else "output")
        # a hook that held this object would keep it alive for as long as the network
        hook = _Hook(self, net, "")
        self._handles = [net.register_forward_pre_hook(hook.begin), net.register_forward_hook(hook.end)]
        for name in self.layers:
            hook = _Hook(self, modules[name], name)
            if inputs:
                self._handles.append(modules[name].register_forward_pre_hook(hook.keep_input, with_kwargs=True))
            else:
                self._handles.append(modules[name].register_forward_hook(hook.keep_output))
        self._finalizer = weakref.finalize(self, _remove, self._handles)

    def take(self) -> list[Tensor]:
        """The maps of the latest forward pass, in the order of the layers.

        They are given once: kept here they would keep the whole graph of a step alive.

        Returns:
            ``[B, c, h, w]`` each, or tokens ``[B, N, c]``.
        """
        maps, versions = self._maps, self._versions
        self._maps, self._versions = {}, {}
        for name in self.layers:
            if name not in maps:
                raise ValueError(f"layers: '{name}' did not run in a forward pass since maps were last taken")
            if name in versions and versions[name] != maps[name]._version:
                raise ValueError(
                    f"layers: the output of '{name}' is overwritten in place by a later operation (an in-place ReLU, "
                    "say); name the module that does so instead"
                )
        return [self._as_map(maps[name], name) for name in self.layers]

    def clear(self) -> None:
        """Lets go of maps that were not taken."""
        self._maps, self._versions = {}, {}

    def close(self) -> None:
        """Removes the hooks, and lets go of the maps."""
        self._finalizer()
        self.clear()

    def __enter__(self) -> FeatureMaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, name: str, value: object) -> None:
        # activation checkpointing runs modules again in the backward pass: those outputs are no maps
        if not self._recording:
            return
        if name in self._maps:
            raise ValueError(f"layers: '{name}' runs more than once in a forward pass; name a module that runs once")
        x = _first_tensor(value)
        if x is None or x.ndim not in (3, 4):
            got = f"a {type(value).__name__}" if x is None else list(x.shape)
            raise ValueError(f"layers: '{name}' must give a map [B, c, h, w] or tokens [B, N, c], got {got}")
        self._maps[name] = x
        if not torch.compiler.is_compiling() and not x.is_inference():
            self._versions[name] = x._version

    def _as_map(self, x: Tensor, name: str) -> Tensor:
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2) if self.nhwc else x
        x = x[:, self.prefix_tokens :]
        if self.grid is None:
            return x
        height, width = self.grid
        if x.shape[1] != height * width:
            raise ValueError(f"grid {height} x {width} must hold the tokens of '{name}', got {x.shape[1]}")
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


class _Hook:
    """What one module calls. A copy of the module (by deepcopy or pickle) has copies of its hooks, which do nothing."""

    def __init__(self, owner: FeatureMaps | None = None, module: nn.Module | None = None, name: str = "") -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        self._module = None if module is None else weakref.ref(module)
        self._name = name

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

    def owner_of(self, module: nn.Module) -> FeatureMaps | None:
        if self._owner is None or self._module is None or self._module() is not module:
            return None
        return self._owner()

    def begin(self, module: nn.Module, args: object) -> None:
        if (owner := self.owner_of(module)) is not None:
            owner.clear()
            owner._recording = True

    def end(self, module: nn.Module, args: object, output: object) -> None:
        if (owner := self.owner_of(module)) is not None:
            owner._recording = False

    def keep_output(self, module: nn.Module, args: object, output: object) -> None:
        if (owner := self.owner_of(module)) is not None:
            owner._keep(self._name, output)

    def keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (owner := self.owner_of(module)) is not None:
            owner._keep(self._name, args or kwargs)


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


def named_modules(net: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """All modules of the network by path.

    Raises:
        ValueError: one of ``layers`` does not exist, or is named twice.
    """
    modules = dict(net.named_modules())
    for name in layers:
        if not name or name not in modules:
            raise ValueError(f"layers: the network has no module '{name}'{nearest(name, modules)}")
        if layers.count(name) > 1:
            raise ValueError(f"layers: '{name}' is named twice")
    return modules


def _check_kept(modules: Mapping[str, nn.Module], layers: Sequence[str], what: str) -> None:
    for name in layers:
        if what in getattr(modules[name], LOST, ()):
            raise ValueError(
                f"layers: the {what} of '{name}' became part of a convolution: name '{name}' to prepare_teacher as well"
            )


def forget_copies(net: nn.Module) -> None:
    """Removes hooks that a copied network has brought along, and that do nothing."""
    for module in net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, _Hook) and owner.owner_of(module) is None:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)


def _first_tensor(value: object) -> Tensor | None:
    """A tensor itself, or the first one of a tuple, a mapping or a dataclass of tensors."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((x for x in map(_first_tensor, value) if x is not None), None)
    return None


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside of ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``."""
    while True:
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            net = inner
        else:
            return net


def channels(maps: Iterable[Tensor]) -> list[int]:
    """Channels of maps ``[B, c, h, w]`` and tokens ``[B, N, c]``: what :class:`semckd_kernels.SemCKD` is built with.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> sk.channels([torch.zeros(2, 64, 8, 8), torch.zeros(2, 49, 192)])
        [64, 192]
    """
    return [x.shape[1] if x.ndim == 4 else x.shape[-1] for x in maps]


def default_layers(net: nn.Module) -> list[str]:
    """Layers of a network whose family is known by the names of its modules; none of others.

    timm's ``feature_info`` where there is one; the stages of torchvision's families; four evenly spaced members of the
    list that holds the stages or blocks of a backbone, such as those of Transformers.
    """
    if layers := timm_layers(net):
        return layers
    modules = dict(net.named_modules())
    for layers in _KNOWN:
        if all(name in modules for name in layers):
            return list(layers)
    for end in _LISTS:
        for name, module in modules.items():
            if (name == end or name.endswith(f".{end}")) and isinstance(module, (nn.ModuleList, nn.Sequential)):
                return evenly([f"{name}.{n}" for n in range(len(module))])
    return []


def timm_layers(net: nn.Module) -> list[str] | None:
    """Layers after timm's ``feature_info``: the last four resolutions, or four evenly spaced blocks of one resolution.

    None where the network has no ``feature_info``, or one that names what is no module.
    """
    modules = dict(net.named_modules())
    info = [(entry["module"], entry["reduction"]) for entry in getattr(net, "feature_info", None) or ()]
    info = [entry for entry in info if not isinstance(modules.get(entry[0]), POOLS)]
    names = [name for name, _ in info]
    if not names or len(set(names)) < len(names) or not set(names) <= set(modules):
        return None
    if len({reduction for _, reduction in info}) == 1:
        return evenly(names)
    # of several layers of one resolution the last
    return list({reduction: name for name, reduction in info}.values())[-LIMIT:]


def evenly(names: Sequence[str], count: int = LIMIT) -> list[str]:
    """``count`` of the names, evenly spaced, the last one among them: of twelve the third, sixth, ninth, twelfth."""
    count = min(count, len(names))
    return [names[(n + 1) * len(names) // count - 1] for n in range(count)]


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence that refuses ``name``: what may have been meant."""
    found = get_close_matches(name, [known for known in names if known], cutoff=0.4)
    return f"; the nearest are {', '.join(found)}" if found else ""
