"""Hashes of results on fixed inputs: a change that only moves code must leave every bit where it was.

    python python_tests/helpers/result_hashes.py          compares with the stored hashes
    python python_tests/helpers/result_hashes.py --save   stores those of this machine

Bits depend on the instruction set and on the versions of torch and numpy, so hashes are stored by these. Parameters are
filled by their names: the order in which modules create them does not matter.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import served  # noqa: F401  chooses Triton's interpreter where there is no GPU
import torch
from criterion_problems import CASES, Case
from problems import RAGGED, make_problem
from torch import Tensor

import semckd_kernels as sk

STORED = Path(__file__).with_suffix(".json")
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# the smallest sizes at which each path of the Winograd kernels and of the blocked products is taken
LARGE = Case([32, 64], [64, 128], [(16, 16), (8, 8)], [(16, 16), (8, 8)], batch=16, batch_size=16)


def environment() -> str:
    """What the bits depend on."""
    processor = platform.processor() or platform.machine()
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        lines = (line.partition(":")[::2] for line in flags.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, value in lines}
        processor = f"{facts.get('vendor_id')} family {facts.get('cpu family')} model {facts.get('model')}"
    level = sk.available_backends()["cpu"].detail.partition(" instructions")[0]
    return f"{processor}, {level}, torch {torch.__version__}, numpy {numpy.__version__}"


def _fill(module: sk.SemCKD) -> None:
    """Values that depend on a tensor's name alone."""
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if x.is_floating_point():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                noise = torch.randn(x.shape, generator=generator) / max(x[0].numel(), 1) ** 0.5
                x.copy_(noise.abs() + 0.5 if x.dim() == 1 else noise)


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _criterion(case: Case, dtype: torch.dtype, training: bool, channels_last: bool, autocast: bool) -> str:
    """Loss, attention, errors, gradients of all parameters and maps, and running statistics."""
    module = case.module("cpu")
    _fill(module)
    module = module.to(dtype).train(training)
    feat_s, feat_t = case.maps(dtype=dtype)
    if channels_last:
        feat_s, feat_t = (
            [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad) for x in maps]
            for maps in (feat_s, feat_t)
        )
    half = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with half:
        loss, weight, mse = module(feat_s, feat_t)
    named = sorted(module.named_parameters())
    gradients = torch.autograd.grad(loss, [*feat_s, *(p for _, p in named)], torch.full_like(loss, -1.7))
    buffers = [x for name, x in sorted(module.named_buffers()) if "running" in name]
    return _digest([loss, weight, mse, *gradients, *buffers])


def _pair_loss(backend: str, s_type: torch.dtype, t_type: torch.dtype, energy: bool) -> str:
    found = make_problem(RAGGED, s_type=s_type, t_type=t_type).run(backend, energy=energy)
    return _digest([found.loss, found.pair_mse, *found.d_s, *found.d_t, found.d_weight])


def cases() -> Iterator[tuple[str, str]]:
    """Names of the cases with their hashes."""
    for name, case in {**CASES, "large": LARGE}.items():
        for dtype in TYPES:
            for training in (True, False):
                for channels_last in (False, True):
                    mode = "training" if training else "eval"
                    layout = "channels_last" if channels_last else "NCHW"
                    kind = str(dtype).removeprefix("torch.")
                    key = f"criterion, {name}, {kind}, {mode}, {layout}"
                    yield key, _criterion(case, dtype, training, channels_last, autocast=False)
        yield f"criterion, {name}, autocast", _criterion(copy.deepcopy(case), torch.float32, True, False, True)
    for backend in ("cpu", "triton"):
        for s_type in TYPES:
            for t_type in TYPES:
                for energy in (False, True):
                    kind = f"{s_type}, {t_type}".replace("torch.", "")
                    key = f"pair loss, {backend}, {kind}, {'energy' if energy else 'weight'}"
                    yield key, _pair_loss(backend, s_type, t_type, energy)


def changed() -> list[str] | None:
    """Names of the cases whose bits are not the stored ones; None where nothing is stored for this environment."""
    stored = json.loads(STORED.read_text()).get(environment())
    if stored is None:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [name for name, found in cases() if stored.get(name) != found]
    finally:
        torch.set_num_threads(threads)


def _save() -> None:
    torch.set_num_threads(1)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored[environment()] = dict(cases())
    STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if "--save" in sys.argv[1:]:
        _save()
    elif (names := changed()) is None:
        sys.exit(f"no hashes are stored for {environment()}")
    else:
        print("\n".join(names) if names else f"every bit is where it was: {environment()}")
        sys.exit(bool(names))
