"""Which backends serve on this machine, and on what device each is tested."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton_interpreter

# without a GPU Triton kernels are interpreted; Triton reads this when it is first imported
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from semckd_kernels import backends
from semckd_kernels.pair_loss import operators


class Backend(NamedTuple):
    name: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Whether its kernels run in Triton's interpreter, some thousand times slower: what is small is enough."""
        return self.name == "triton" and self.device == "cpu"

    @property
    def operators(self) -> Any:
        """The namespace of its operators; the reference has none."""
        return operators.operators(operators.resolve(self.name, self.device))


def device_of(name: str) -> str:
    """The device that a backend is tested on."""
    return "cuda" if name == "cuda" or (name != "cpu" and torch.cuda.is_available()) else "cpu"


MISSING = {name: reason for name in backends.NAMES if (reason := backends.why_not(name, device_of(name)))}
if "triton" not in MISSING and device_of("triton") == "cpu":
    triton_interpreter.mend()
SERVED = [Backend(name, device_of(name)) for name in backends.NAMES if name not in MISSING]

# the backends that have kernels of the whole criterion
CRITERION_SERVED = [b for b in SERVED if b.name != "reference" and backends.why_not_work(b.name, "criterion") is None]
