"""State dicts of the authors' two code bases, *official* (2021) and *toolbox* (2022), in and out.

=============  ================================  ====================================
part           official, and ours                toolbox
=============  ================================  ====================================
query MLP i    ``query_weight{i}.linear{1,2}``   ``query_{i}.linear{1,2}``
key MLP j      ``key_weight{j}.linear{1,2}``     ``key_{j}.linear{1,2}``
projection     ``regressor{i}{j}.regressor.*``   the same
never used     none                              ``{query,key}_{n}.regressor.{0,3}``
=============  ================================  ====================================

Where ``regressor{i}{j}`` would name two pairs (from 12 x 11 layers on) ours is ``regressor{i}_{j}``. In the authors'
code two such pairs share one module.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .cross_layer import CrossLayerModule

# tensors of each of the toolbox's MLPs that its forward pass never reads, and ours of the same shapes
UNUSED = {
    "regressor.0.weight": "linear1.weight",
    "regressor.0.bias": "linear1.bias",
    "regressor.3.weight": "linear2.weight",
    "regressor.3.bias": "linear2.bias",
}


def projection_names(s_len: int, t_len: int) -> dict[tuple[int, int], str]:
    """The name of each pair's projection, row by row."""
    pairs = [(i, j) for i in range(s_len) for j in range(t_len)]
    names = {(i, j): _shared_name(i, j) for i, j in pairs}
    if len(set(names.values())) < len(pairs):
        names = {(i, j): f"regressor{i}_{j}" for i, j in pairs}
    return names


def translate(module: CrossLayerModule, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    """A hook before loading: renames what the authors' code bases call otherwise.

    It runs on a copy of the caller's state dict, and leaves alone whatever it does not know, for torch to refuse.
    """
    if any(key.startswith(f"{prefix}query_0.") for key in state):
        _translate_embeddings(module, state, prefix)
    _translate_shared_projections(module, state, prefix)


def to_toolbox(module: CrossLayerModule) -> OrderedDict[str, Tensor]:
    """The module's state dict as the toolbox's module loads it, strictly; what that never reads is zeros.

    Raises:
        ValueError: the toolbox has one name, and one module, for two pairs of this many layers.
    """
    if _has_shared_names(module):
        raise ValueError(
            f"the toolbox's form must have a name for each pair, got {module.s_len} x {module.t_len} layers, where "
            f"regressor1 11 and regressor11 1 are one: use state_dict()"
        )
    official = module.state_dict()
    heads = {new: old for old, new in _toolbox_heads(module).items()}
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in official.items():
        head, _, tail = key.partition(".")
        state[f"{heads.get(head, head)}.{tail}"] = value
    for ours, toolbox in heads.items():
        for unused, like in UNUSED.items():
            state[f"{toolbox}.{unused}"] = official[f"{ours}.{like}"].new_zeros(official[f"{ours}.{like}"].shape)
    return state


def _toolbox_heads(module: CrossLayerModule) -> dict[str, str]:
    """The toolbox's names of the MLPs, and ours."""
    queries = {f"query_{i}": f"query_weight{i}" for i in range(module.s_len)}
    return queries | {f"key_{j}": f"key_weight{j}" for j in range(module.t_len)}


def _translate_embeddings(module: CrossLayerModule, state: dict[str, Any], prefix: str) -> None:
    heads = _toolbox_heads(module)
    for key in list(state):
        head, _, tail = key.removeprefix(prefix).partition(".")
        if not key.startswith(prefix) or head not in heads:
            continue
        value = state.pop(key)
        if tail not in UNUSED:
            state[f"{prefix}{heads[head]}.{tail}"] = value


def _translate_shared_projections(module: CrossLayerModule, state: dict[str, Any], prefix: str) -> None:
    """Where two pairs had one name they also shared one module: both get its values."""
    if not _has_shared_names(module):
        return
    shared = {pair: _shared_name(*pair) for pair in module._projection_names}
    for pair, name in module._projection_names.items():
        for tail in module.get_submodule(name).state_dict():
            old, new = f"{prefix}{shared[pair]}.{tail}", f"{prefix}{name}.{tail}"
            if new not in state and old in state:
                state[new] = state[old]
    tails = {
        f".{tail}" for name in module._projection_names.values() for tail in module.get_submodule(name).state_dict()
    }
    for old in set(shared.values()):
        for tail in tails:
            state.pop(f"{prefix}{old}{tail}", None)


def _shared_name(i: int, j: int) -> str:
    return f"regressor{i}{j}"


def _has_shared_names(module: CrossLayerModule) -> bool:
    return any("_" in name for name in module._projection_names.values())
