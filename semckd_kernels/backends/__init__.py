"""Which implementation serves a call, and why another one does not.

=============  ==========================================  ===============================================
name           what it is                                  serves
=============  ==========================================  ===============================================
``cuda``       CUDA C++, compiled with the package         NVIDIA GPUs
``triton``     Triton, compiled at first use               NVIDIA and AMD GPUs; the CPU when interpreted
``cpu``        C++, compiled with the package              the CPU
``reference``  plain PyTorch, one pair at a time           every device; differentiable twice
=============  ==========================================  ===============================================

``backend=None`` takes the fastest that serves the tensors' device. A name forces one; the environment variable
``SEMCKD_BACKEND`` does so for a whole process.

There are two kinds of work: the ``pair_loss``, which all of them do, and the whole ``criterion``, whose GPU kernels are
Triton's alone, since they are matrix products with something around them.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..stages.backend import Backend
from . import libraries

# fastest first, for each kind of work and device; devices that are not named here are served by the reference alone
_PREFERENCE = {
    ("pair_loss", "cuda"): ("cuda", "triton", "reference"),
    ("pair_loss", "cpu"): ("cpu", "reference"),
    ("criterion", "cuda"): ("triton", "reference"),
    ("criterion", "cpu"): ("cpu", "reference"),
}
NAMES = ("reference", "cpu", "cuda", "triton")
CPU_LEVELS = ("base", "avx2", "avx512", "avx512_bf16")


class Availability(NamedTuple):
    """Whether a backend can serve anything in this process, and in one sentence how, or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, Availability]:
    """All backends, with how they serve here or the reason why they do not.

    Example:
        >>> import semckd_kernels as sk
        >>> sk.available_backends()["reference"].available
        True
    """
    result = {"reference": Availability(True, "plain PyTorch, on every device")}
    for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("triton", "cuda")):
        reason = why_not(name, device)
        if name == "triton" and reason:
            # without a GPU Triton can still serve, interpreted
            interpreted = why_not("triton", "cpu") is None
            result[name] = Availability(interpreted, "interpreted, on the CPU" if interpreted else reason)
        else:
            result[name] = Availability(reason is None, reason or _describe(name))
    return result


def _describe(name: str) -> str:
    if name == "cpu":
        return f"C++, {torch.ops.semckd_cpu.isa()} instructions, {torch.get_num_threads()} threads"
    return f"{'CUDA C++' if name == 'cuda' else 'Triton'}, on {torch.cuda.get_device_name()}"


@functools.cache
def why_not(name: str, device_type: str) -> str | None:
    """Why a backend cannot serve tensors on a kind of device, in one sentence; None where it can.

    The answer is found once a process: it depends on what is installed and on the hardware only.
    """
    if name == "reference":
        return None
    if name == "triton":
        from . import triton as _triton

        if reason := _triton.why_not(device_type):
            return reason
        return None
    if device_type != name:
        return f"it serves {name.upper()} tensors only"
    if name == "cpu":
        return _wrong_cpu_level() or libraries.load_compiled()
    if reason := libraries.load_cuda():
        return reason
    return None if torch.cuda.is_available() else "no CUDA GPU is visible to torch: check the driver with nvidia-smi"


def _wrong_cpu_level() -> str | None:
    level = os.environ.get("SEMCKD_CPU_LEVEL")
    if level is None or level in CPU_LEVELS:
        return None
    return f"SEMCKD_CPU_LEVEL is '{level}', not one of {', '.join(CPU_LEVELS)}: unset or correct it"


def why_not_work(name: str, work: str) -> str | None:
    """Why a backend that serves a device cannot do a kind of work on it; None where it can."""
    if name == "cuda" and work == "criterion":
        return "it has kernels of the pair loss only; those of the whole criterion are the backend 'triton'"
    return None


def check_name(backend: str | None, source: str) -> None:
    """Raises ValueError unless ``backend`` is None or names a backend; ``source`` is where the name came from."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"{source} must be a name or None, got {backend!r} ({type(backend).__name__})")
    if backend is not None and backend not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {backend!r}")


def resolve(backend: str | None, device_type: str, work: str = "pair_loss") -> str:
    """The name of the backend that serves tensors on a kind of device.

    Args:
        backend: a name, or None for ``SEMCKD_BACKEND`` and, where that is not set, the fastest.
        device_type: the kind of device that the maps are on, ``torch.device.type``.
        work: ``"pair_loss"`` or ``"criterion"``.

    Raises:
        ValueError: there is no backend of that name, or ``SEMCKD_CPU_LEVEL`` has no value that there is.
        RuntimeError: the backend asked for cannot serve that device; the message says why.
    """
    source = "backend"
    if backend is None:
        backend = os.environ.get("SEMCKD_BACKEND") or None
        source = "SEMCKD_BACKEND"
    if backend is None:
        return _fastest(work, device_type)
    check_name(backend, source)
    if reason := why_not(backend, device_type) or why_not_work(backend, work):
        raise RuntimeError(f"{source} '{backend}' cannot serve {device_type} tensors: {reason}")
    return backend


# torch.compile takes the answer as a constant instead of tracing the search for it; this is what
# torch.compiler.assume_constant_result does, without the seconds that importing the compiler costs
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _fastest(work: str, device_type: str) -> str:
    if device_type == "cpu" and (reason := _wrong_cpu_level()):
        # a backend is missing by mistake, so that another one would be a silent loss of speed
        raise ValueError(reason)
    candidates = _PREFERENCE.get((work, device_type), ("reference",))
    missing = []
    for name in candidates:
        if (reason := why_not(name, device_type)) is None:
            break
        missing.append(f"{name}: {reason}")
    # on AMD GPUs Triton is the first choice that there is
    if missing and (name == "reference" or torch.version.hip is None):
        served = "the plain PyTorch reference serves" if name == "reference" else f"the backend '{name}' serves"
        warnings.warn(
            f"{served} {device_type} tensors here, since faster kernels do not ({'; '.join(missing)})",
            RuntimeWarning,
            stacklevel=2,
        )
    return name


def criterion_backend(
    name: str,
    device: torch.device,
    map_dtype: torch.dtype,
    acc_dtype: torch.dtype,
    gradients: bool,
) -> Backend:
    """What computes the whole criterion for one call.

    Args:
        name: ``"cpu"`` or ``"triton"``; it serves the device (:func:`resolve`).
        map_dtype: the type that maps are computed in; ``acc_dtype`` that of sums.
        gradients: whether they are wanted.
    """
    if name == "cpu":
        from .cpu.backend import CpuBackend

        return CpuBackend(acc_dtype)
    from .triton.criterion.backend import TritonBackend

    return TritonBackend(device, map_dtype, gradients)


def scale_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiplies dense tensors of one type and device by a number of that device, in place."""
    if tensors[0].device.type == "cpu" and tensors[0].dtype == factor.dtype and why_not("cpu", "cpu") is None:
        torch.ops.semckd_cpu.scale_(tensors, factor)
    else:
        torch._foreach_mul_(tensors, factor)


def triton_pair_loss() -> Any:
    """The module with Triton's launches of the pair loss; Triton must be there (:func:`why_not`)."""
    from .triton.pair_loss import launches

    return launches
