"""Files of weights in the forms that other training scripts, old versions and bad intentions give them."""

from __future__ import annotations

import argparse
import io
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def foreign(name: str, base: type = object) -> Callable[..., Any]:
    """A class of a package that is here only while it is pickled, as ``easydict.EasyDict`` on its author's machine."""
    module, _, attribute = name.rpartition(".")
    kind = type(attribute, (base,), {"__module__": module})
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], attribute, kind)
    return kind


def saved(path: Path, content: Any, old: bool = False) -> Path:
    """``torch.save`` in the present format, or in that of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for module in ("easydict", "omegaconf"):
        sys.modules.pop(module, None)
    return path


def family(state: State) -> dict[str, Any]:
    """What the scripts of the CRD family write after their first learning-rate decay, and at the end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.05, momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.05 * 0.1 ** np.sum(np.float64(200) > np.asarray([150, 180, 210]))
    content = {"epoch": 240, "model": state, "accuracy": torch.tensor(69.1), "optimizer": optimizer.state_dict()}
    numbers = [np.float32(1), np.int64(3), np.bool_(True), np.arange(3), np.dtype("float64")]
    return {**content, "best_acc": np.float64(69.1), "opt": argparse.Namespace(model="resnet8", lr=numbers)}


def objects(state: State) -> dict[str, Any]:
    """Objects of many packages beside the weights, and a container of one around them."""
    easydict, omega = foreign("easydict.EasyDict", dict), foreign("omegaconf.DictConfig")
    config = omega()
    config.__dict__.update(lr=0.1, nested=easydict(a=1))
    counts = defaultdict(list, a=[1])
    things = [config, counts, Path("a/b"), datetime(2020, 1, 1), partial(print, 1), {1, 2}, {Path("c"): 1}, int, len]
    return easydict(things=things, device=torch.device("cpu"), kind=torch.float16, state_dict=state)


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.values = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.values

    def __call__(self) -> None:
        """What a call gives may be called in turn."""


def malicious(mark: Path) -> dict[str, Any]:
    """Objects that would write ``mark`` were anything of them run."""
    shell, code = f"touch '{mark}'", f"open({str(mark)!r}, 'w').close()"
    buffer = io.BytesIO()
    torch.save(Calls(os.system, shell), buffer)
    # an array of objects is a pickle in a pickle
    array = np.empty(1, dtype=object)
    array[0] = Calls(os.system, shell)
    return {
        "system": Calls(os.system, shell),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, str(mark), "w"),
        "getattr": Calls(Calls(getattr, Path(mark), "touch")),
        "path": Calls(Path.touch, mark),
        "nested": Calls(torch.storage._load_from_bytes, buffer.getvalue()),
        "hub": Calls(partial(torch.hub.load, source="local"), str(mark.parent), "entry"),
        "object array": array,
        "object scalar": Calls(np.float64(1).__reduce__()[0], np.dtype("O"), Calls(os.system, shell)),
        "state": Calls(argparse.Namespace, state={"a": Calls(os.system, shell)}),
        "partial": Calls(partial(os.system, shell)),
    }
