"""Weights out of files: finds a network's own among all that a training script has saved, and refuses what differs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import weight_files
from .features import FeatureNet
from .inert_pickle import Unknown

# what wrappers put into names wherever a part is wrapped: torch.compile, FSDP, activation checkpointing
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
# state dicts lie this deep in a file at most
_DEPTH = 3
# a copy beside the network that was trained: a moving average, or what it learned from; in a run of this package the
# average is the network, and "raw" what it is an average of
_COPIES = {"raw", "ema", "swa", "averaged", "shadow", "momentum", "target", "teacher"}
# names shown of each kind of difference
_SHOWN = 3
_COUNTER = "num_batches_tracked"


class _Found(NamedTuple):
    """Values that may be a network's, by its own names, and where they lie in the file."""

    place: str
    values: dict[str, Any]


def load_weights(net: FeatureNet, path: str | Path, name: str = "the network") -> None:
    """Loads a file's weights into a network, all of them or none; no code in the file is run.

    The network's state dict is looked for by its names, so that all usual forms are served: the state dict itself; one
    in ``{"model": ..., "epoch": ...}``, as the CRD family (RepDistiller) writes it, or under any other key
    (``state_dict``, ``net``, ``student``, ``model_state_dict``); names behind ``module.`` of DataParallel,
    ``_orig_mod.`` of torch.compile, or a part of a larger module, as ``model.`` of Lightning is, with other parts
    beside it. A moving average (``ema``) or a ``teacher`` beside a network of the same form is not taken; alone it is.

    Args:
        net: takes the weights, on whatever device and in whatever type it is.
        path: a file of ``torch.save`` in the present or the old (before torch 1.6) format, or ``.safetensors``.
        name: of the network, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint; it holds no state dict, a whole pickled network, several
            networks of this form, or one of another architecture (with the first names and shapes that differ) or
            another number of classes.
    """
    own = net.net.state_dict()
    content = weight_files.read(Path(path))
    # BatchNorm's counter of batches is younger than some files, and of no use at a fixed momentum
    counters = {key: value for key, value in own.items() if key.endswith(_COUNTER)}
    candidates = [
        found._replace(values=counters | found.values)
        for place, values in _mappings(content)
        for found in _candidates(place, values, own)
    ]
    fitting = [found for found in candidates if not _differences(found.values, own)]
    if fitting:
        net.net.load_state_dict(_chosen(fitting, path).values)
        return
    if not candidates:
        raise ValueError(f"weights: {path} {_without_state(content)}")
    # what shares most names tells best what is wrong; a part of it only where it is mostly there
    nearest = max(candidates, key=lambda found: len(own.keys() & found.values.keys()))
    raise ValueError(f"weights: {path} {_refusal(nearest.values, own, name)}")


def _mappings(
    content: Any, place: str = "", depth: int = _DEPTH, seen: set[int] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All mappings that hold tensors by name, each once, the outer ones first."""
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))
    if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield place, content
    if depth:
        for key, value in content.items():
            yield from _mappings(value, f"{place}{key}/", depth - 1, seen)


def _candidates(place: str, values: Mapping[Any, Any], own: Mapping[str, Tensor]) -> Iterator[_Found]:
    """The whole of a mapping without what all names share, and each part of it that has most of a network's names."""
    # numbers beside the weights, such as the epoch, are none
    state = {
        _WRAPPERS.sub("", key): value
        for key, value in values.items()
        if isinstance(key, str) and isinstance(value, (Tensor, Unknown))
    }
    prefixes: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for n in range(len(parts)):
            if ".".join(parts[n:]) in own:
                prefixes[".".join([*parts[:n], ""]) if n else ""] += 1
    shared = _shared_prefix(state, own)
    needed = sum(not key.endswith(_COUNTER) for key in own)
    for prefix in dict.fromkeys([shared, *(p for p, count in prefixes.items() if 2 * count >= needed)]):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        yield _Found(f"{place}{prefix}".rstrip("./"), part)


def _shared_prefix(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """The leading parts that all names share, and that are none of the network's own."""
    names, prefix = list(state), ""
    while True:
        head, dot, _ = names[0][len(prefix) :].partition(".")
        longer = f"{prefix}{head}{dot}"
        if not dot or not all(key.startswith(longer) for key in names) or any(key.startswith(longer) for key in own):
            return prefix
        prefix = longer


def _differences(values: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names by what is wrong with them; empty where values fit."""
    kinds = {
        "missing": [key for key in own if key not in values],
        # what is no tensor stands beside the weights
        "unexpected": [key for key, value in values.items() if key not in own and isinstance(value, Tensor)],
        "no plain tensors": [
            f"{key} ({_source(values[key])})" for key in own if key in values and not _is_plain(values[key])
        ],
        "of another shape": [
            f"{key} {list(values[key].shape)} for {list(value.shape)}"
            for key, value in own.items()
            if key in values and _is_plain(values[key]) and values[key].shape != value.shape
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized and not value.is_meta


def _source(value: object) -> str:
    return value.source if isinstance(value, Unknown) else "sparse, quantized or on meta"


def _chosen(fitting: list[_Found], path: str | Path) -> _Found:
    """The network that the file is about, where several of its form lie in it."""
    first = [found for found in fitting if not _COPIES & set(re.split(r"[./_]", found.place))] or fitting
    for other in first[1:]:
        if any(
            not _same(value, other.values[key]) for key, value in first[0].values.items() if isinstance(value, Tensor)
        ):
            places = " and ".join(f"'{found.place}'" for found in (first[0], other))
            raise ValueError(
                f"weights: {path} holds several networks of this form, {places}: save the state dict that is wanted by "
                "itself"
            )
    return first[0]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _without_state(content: Any) -> str:
    items = [content, *(content.values() if isinstance(content, Mapping) else ())]
    for value in items:
        if isinstance(value, Unknown) and value.is_network:
            return (
                f"holds a whole pickled network ('{value.source}'), which only its own code can read: load it there "
                "and save its state_dict()"
            )
    keys = [str(key) for key in content] if isinstance(content, Mapping) else []
    what = f"keys: {_some(keys)}" if keys else f"a {type(content).__name__}"
    return f"holds no state dict ({what})"


def _refusal(values: Mapping[str, Any], own: Mapping[str, Tensor], name: str) -> str:
    differences = _differences(values, own)
    if set(differences) == {"of another shape"} and len(differences["of another shape"]) <= 2:
        changed = [key for key, value in own.items() if values[key].shape != value.shape]
        # weight and bias of a classifier differ in their rows alone
        rows = {(values[key].shape[:1], own[key].shape[:1]) for key in changed}
        if len(rows) == 1 and all(values[key].shape[1:] == own[key].shape[1:] for key in changed):
            ((got, wanted),) = rows
            if got and wanted:
                return f"holds {got[0]} classes, but {name} is to have the data's {wanted[0]}"
    found = "; ".join(f"{kind}: {_some(names)}" for kind, names in differences.items())
    return f"is of another architecture than {name} ({found})"


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
