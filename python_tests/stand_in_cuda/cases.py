"""What only a CUDA device reaches, run on the stand-in: each function returns records for a test to judge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semckd_kernels as sk
from semckd_kernels import functional

from .problems import NHWC, TYPES
from .records import Log

# small maps: layers of two networks that differ in number, size and channels
STUDENT = ((8, 8), (16, 4))
TEACHER = ((12, 8), (16, 4), (24, 2))
BATCH = 4


def maps(layers: Any, dtype: torch.dtype, layout: torch.memory_format, device: str, grad: bool) -> list[Tensor]:
    """Maps ``[BATCH, C, side, side]`` of ``(C, side)`` each."""
    return [
        torch.zeros(BATCH, c, side, side, dtype=dtype, device=device).to(memory_format=layout).requires_grad_(grad)
        for c, side in layers
    ]


def criterion_step(
    dtype: torch.dtype, layout: torch.memory_format, device: str = "cuda", autocast: torch.dtype | None = None
) -> Callable[[], None]:
    """A forward and backward of ours on small maps; parameters have the maps' type unless autocast is on."""
    module = sk.SemCKD(BATCH, [c for c, _ in STUDENT], [c for c, _ in TEACHER], backend="triton").to(device)
    if autocast is None:
        module = module.to(dtype)
    feat_s, feat_t = (maps(x, dtype, layout, device, x is STUDENT) for x in (STUDENT, TEACHER))

    def step() -> None:
        with torch.autocast("cuda", autocast or torch.bfloat16, enabled=autocast is not None, cache_enabled=False):
            loss = module(feat_s, feat_t).loss
        torch.autograd.grad(loss, [*feat_s, *module.parameters()])

    return step


def pair_loss_step(backend: str, dtype: torch.dtype, layout: torch.memory_format, pairs: int = 2) -> Callable[[], None]:
    """A forward and backward of the pair loss, of a student layer and ``pairs`` teacher layers."""
    layers = [STUDENT[0]] * pairs
    s, t = (maps(layers, dtype, layout, "cuda", grad) for grad in (True, False))
    energy = torch.zeros(BATCH, 1, pairs, device="cuda", requires_grad=True)

    def step() -> None:
        loss = functional.semckd_loss_from_energy([s], [t], energy, backend=backend)
        torch.autograd.grad(loss, [*s, energy])

    return step


def twice(step: Callable[[], None], mode: str = "global") -> dict[str, Any]:
    """A step eagerly, after one to get warm, and captured and replayed: what was wrong, and what each launched."""
    step()
    with Log() as eager:
        step()
    graph = torch.cuda.CUDAGraph()
    with Log() as captured:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            step()
        graph.replay()
    inside = [record for record in captured.launches if record.captured]
    return {
        "eager": len(eager.launches),
        "captured": len(inside),
        "captures": [record.name for record in captured.of("capture")],
        "replays": len(captured.of("graph")),
        # the log itself waits before it begins
        "syncs": len(eager.of("sync")),
        "pageable": len(eager.copies("pageable")) + len(captured.copies("pageable")),
        "refused": [record.name for log in (eager, captured) for record in log.of("illegal", "unsupported")],
        "devices": sorted({record.device for record in eager.launches}),
    }


# each type, each layout, and autocast from either side
SOME_CRITERIA = ("fp32 NHWC", "fp16 NCHW", "fp64 NCHW", "bf16 NHWC autocast", "fp32 NCHW autocast bf16")


def criteria(names: Sequence[str] | None = None) -> dict[str, Any]:
    """The criterion in every type and layout, as it is and under autocast, or in some, eager and captured."""
    steps: dict[str, tuple[torch.dtype, torch.memory_format, torch.dtype | None]] = {}
    for (name, dtype), layout in product([*TYPES.items(), ("fp64", torch.float64)], (torch.contiguous_format, NHWC)):
        order = "NHWC" if layout is NHWC else "NCHW"
        steps[f"{name} {order}"] = dtype, layout, None
        if dtype in (torch.float16, torch.bfloat16):
            steps[f"{name} {order} autocast"] = dtype, layout, dtype
            steps[f"fp32 {order} autocast {name}"] = torch.float32, layout, dtype
    found = {}
    for name in names or steps:
        dtype, layout, autocast = steps[name]
        found[name] = twice(criterion_step(dtype, layout, autocast=autocast))
    return found


def pair_losses(backend: str) -> dict[str, Any]:
    """The pair loss of one backend in every type and layout, eager and captured."""
    kinds = product([*TYPES.items(), ("fp64", torch.float64)], (torch.contiguous_format, NHWC))
    return {
        f"{name} {'NHWC' if layout is NHWC else 'NCHW'}": twice(pair_loss_step(backend, dtype, layout))
        for (name, dtype), layout in kinds
    }


def missing_backends() -> dict[str, str]:
    """Why a backend of the GPU does not serve here."""
    return {name: x.detail for name, x in sk.available_backends().items() if not x.available}


def second_device() -> dict[str, Any]:
    """Everything is on device 1 while device 0 is current, eager and captured."""
    step = criterion_step(torch.float32, NHWC, "cuda:1")
    step()
    with Log() as eager:
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(1):
        stream = torch.cuda.Stream()
    # the stream makes its device current; a program may well go back to another
    with Log() as captured, torch.cuda.graph(graph, stream=stream), torch.cuda.device(0):
        step()
    return {
        "eager": sorted({record.device for record in eager.launches}),
        "captured": sorted({(record.device, record.captured) for record in captured.launches}),
        "streams": len({record.stream for record in captured.launches}),
        "captures": [record.name for record in captured.of("capture")],
        "refused": [record.name for record in (*eager.records, *captured.records) if record.kind == "illegal"],
    }


def other_device_captures() -> dict[str, Any]:
    """Device 0 captures while the criterion works on device 1, which does not."""
    step = criterion_step(torch.float32, NHWC, "cuda:1")
    step()
    x = torch.zeros(8, device="cuda:0")
    graph = torch.cuda.CUDAGraph()
    with Log() as log, torch.cuda.graph(graph, capture_error_mode="relaxed"):
        x * 2
        step()
    return {
        "launches": sorted({(record.device, record.captured) for record in log.launches}),
        "refused": [record.name for record in log.of("illegal")],
    }


def pins_in_capture() -> int:
    """How often a capture of the pair loss asks for pinned memory, of a table larger than any before."""
    pair_loss_step("triton", torch.float32, NHWC)()
    step = pair_loss_step("triton", torch.float32, NHWC, pairs=40)
    with Log() as log, torch.cuda.graph(torch.cuda.CUDAGraph()):
        step()
    assert len(log.copies("H2D pinned")) > 0
    return len(log.of("pin"))


def convolutions() -> list[str]:
    """The vendor's convolutions in a step."""
    step = criterion_step(torch.float32, NHWC)
    with Log() as log:
        step()
    return [record.name for record in log.of("vendor") if record.name.startswith("conv ")]


def optimizer_waits() -> int:
    """How often making the optimizer of a graphed run waits for the device."""
    from semckd_kernels.training import optimizers
    from semckd_kernels.training.config import RecipeConfig

    module = torch.nn.Linear(4, 4).to("cuda")
    with Log() as log:
        optimizer = optimizers.make(module, RecipeConfig(), graphed=True)
    assert optimizer.param_groups[0]["lr"].is_cuda
    return len(log.of("sync"))


@contextmanager
def meanwhile(owner: Any, name: str, work: Callable[[], object]) -> Iterator[list[str]]:
    """Another thread does ``work`` during every call of a method; yields the errors that it met."""
    original, errors = getattr(owner, name), []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}".splitlines()[0])

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        return original(self, *args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield errors
    finally:
        setattr(owner, name, original)


def graphed_training_beside_a_loader(folder: str) -> dict[str, Any]:
    """A graphed run, while another thread pins memory in every step, the captured one included."""
    import training_nets

    from semckd_kernels.training import preparation
    from semckd_kernels.training.loop import trainer
    from semckd_kernels.training.loop.step import TrainStep
    from semckd_kernels.training.run.folder import RunFolder

    pinned: list[Tensor] = []

    def pin() -> None:
        # a size that the allocator does not have, and a block that it has to ask the driver about
        pinned.append(torch.zeros(1000 << len(pinned) % 12).pin_memory())
        pinned[-1].to("cuda", non_blocking=True)
        pinned[-1] = torch.zeros(1)

    teacher = Path(folder) / "teacher"
    assert training_nets.train(teacher, "--epochs", "1", student="wide") == 0
    changes = {"hardware.device": "cuda", "hardware.cuda_graph": True, "recipe.epochs": 1}
    # whose state begins in the first step, and what else an update may have
    changes |= {"recipe.optimizer": "adamw", "recipe.clip_grad": 1.0, "recipe.ema": 0.9, "method.label_smoothing": 0.1}
    run = RunFolder(Path(folder) / "run")
    config = training_nets.semckd(teacher, **changes)
    run.create(config)
    with Log() as log, meanwhile(TrainStep, "__call__", pin) as errors:
        trainer.train(preparation.prepare(config), run)
    return {
        "captures": [record.name for record in log.of("capture")],
        "refused": [record.name for record in log.of("illegal")],
        "errors": errors,
        "other_ms": run.metrics()[0]["other_ms"],
    }


def analyses(folder: str) -> dict[str, Any]:
    """Exit code and errors of each analysis of the run that ``graphed_training_beside_a_loader`` left."""
    import contextlib
    import io

    from semckd_kernels.cli import main

    found = {}
    for command in ("attention", "mismatch", "gradcam --images 5,3", "single-pairs --pairs 0,0 --epochs 1"):
        name, *options = command.split()
        run = str(Path(folder) / "run")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(["analyze", name, run, *options, "--device", "cuda"])
        found[name] = [code, errors.getvalue()]
    return found


def all_cases(folder: str) -> dict[str, Any]:
    """Every case of this file; training leaves its run in ``folder``."""
    missing = missing_backends()
    return {
        "missing": missing,
        "criteria": criteria(SOME_CRITERIA),
        **{f"pair_loss {name}": pair_losses(name) for name in ("cuda", "triton") if name not in missing},
        "second_device": second_device(),
        "other_device_captures": other_device_captures(),
        "pins_in_capture": pins_in_capture(),
        "convolutions": convolutions(),
        "optimizer_waits": optimizer_waits(),
        "training": graphed_training_beside_a_loader(folder),
        "analyses": analyses(folder),
    }
