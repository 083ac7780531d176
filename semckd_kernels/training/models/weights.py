"""Weights out of files: teachers of the CRD family, plain state dicts, and this package's own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import first_line
from .features import FeatureNet

# where a file keeps the network's state dict: the CRD family's, this package's, the most usual of others
_PLACES = ("model", "student", "state_dict")
# put before every name by DataParallel and DistributedDataParallel, torch.compile, FeatureNet
_PREFIXES = ("module.", "_orig_mod.", "net.")
# names shown of each kind of difference
_SHOWN = 3


def load_weights(net: FeatureNet, path: str | Path) -> None:
    """Loads a file's weights into a network, all of them or none.

    Files are read with ``weights_only=True``, so that they can run no code. A file is ``{"model": state_dict, ...}`` as
    the teachers of the CRD family (RepDistiller) are, one of this package's checkpoints (``"student"``), one with a
    ``"state_dict"``, or a state dict itself. Names may begin with ``module.``, as DistributedDataParallel's do.

    Args:
        net: takes the weights, on whatever device and in whatever type it is.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, holds no state dict, or one of another architecture (with the first names
            and shapes that differ) or of another number of classes.
    """
    state = _without_prefixes(_state_dict(Path(path)), net)
    own = net.net.state_dict()
    # BatchNorm's counter of batches is younger than some files, and of no use at a fixed momentum
    state = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | state
    _check(state, own, path)
    net.net.load_state_dict(state)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # a file that is no checkpoint can fail in many ways
    except Exception as error:
        raise ValueError(
            f"weights: {path} cannot be read as a checkpoint of weights alone ({first_line(error)})"
        ) from error
    if isinstance(content, Mapping):
        for place in _PLACES:
            if isinstance(content.get(place), Mapping):
                content = content[place]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"weights: {path} holds no state dict, neither itself nor under {', '.join(_PLACES)}")
    return content


def _without_prefixes(state: Mapping[str, Tensor], net: FeatureNet) -> dict[str, Tensor]:
    own = list(net.net.state_dict())
    result = dict(state)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in result)), None):
        # a network may have a part of that name
        if all(name.startswith(prefix) for name in own):
            break
        result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    differ = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    if not missing and not unexpected and not differ:
        return
    changes = {(tuple(state[name].shape), tuple(own[name].shape)) for name in differ}
    # weight and bias of a classifier differ in their rows alone
    rows = {(got[:1], wanted[:1]) for got, wanted in changes if got[1:] == wanted[1:]}
    if (
        not missing
        and not unexpected
        and len(differ) <= 2
        and len(rows) == 1
        and all(g[1:] == w[1:] for g, w in changes)
    ):
        ((got, wanted),) = rows
        raise ValueError(f"weights: {path} is for {got[0]} classes, the network has {wanted[0]}")
    shapes = [f"{name} {list(state[name].shape)} for {list(own[name].shape)}" for name in differ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
    raise ValueError(f"weights: {path} is of another architecture than the network ({found})")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
