"""Checkpoints of earlier versions: what they hold by position is put where it belongs today.

An optimizer's state goes by the position of its parameters. Earlier versions created SemCKD's query MLPs before its key
MLPs, which is the other way round today, as in the authors' code. A checkpoint's state dicts keep the order that the
parameters had when it was written, so that names tell which state is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def optimizer_state(state: dict[str, Any], distiller: nn.Module) -> dict[str, Any]:
    """A checkpoint's optimizer state for the parameters of ``distiller`` in their order of today.

    Args:
        state: the checkpoint, with ``student``, ``criterion`` and ``optimizer``.
        distiller: holds the student's network as ``student.net`` and the criterion as ``criterion``.
    """
    names = [name for name, p in distiller.named_parameters() if p.requires_grad]
    known = frozenset(names)
    saved = [f"student.net.{name}" for name in state["student"]] + [f"criterion.{name}" for name in state["criterion"]]
    found: dict[str, Any] = reordered(state["optimizer"], [name for name in saved if name in known], names)
    return found


def reordered(optimizer: dict[str, Any], saved: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state dict for another order of the same parameters.

    Args:
        optimizer: of ``Optimizer.state_dict()``.
        saved: names of the parameters in the order they had when it was made.
        names: the same names in the order they have now. Where the names are not the same, nothing is changed, and
            loading it will tell.
    """
    if list(saved) == list(names) or sorted(saved) != sorted(names) or len(set(names)) < len(names):
        return optimizer
    position = {name: n for n, name in enumerate(names)}
    states = {position[name]: optimizer["state"][n] for n, name in enumerate(saved) if n in optimizer["state"]}
    return {**optimizer, "state": dict(sorted(states.items()))}
