"""Bytes of a network in each format, and the logits that they give when they are read again."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ...install import pip_install
from .. import preparation
from ..errors import first_line
from ..export_formats import FILES, FORMATS, PACKAGES
from ..run.folder import LoadedRun


def check(name: str) -> None:
    """Raises ValueError where there is no such format, or a package for it is missing."""
    if name not in FILES:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got '{name}'")
    if missing := [package for package in PACKAGES[name] if find_spec(package) is None]:
        raise ValueError(
            f"format {name} needs {' and '.join(missing)}, not installed: run {pip_install('semckd-kernels[export]')}"
        )


def make(name: str, net: nn.Module, images: Tensor, run: LoadedRun) -> tuple[bytes, Tensor]:
    """The content of a file, and the logits of what is read from it.

    Args:
        name: of :data:`FORMATS`.
        net: in eval mode, on the CPU.
        images: ``[B, C, H, W]``, B at least 2.
        run: that the network is of.

    Raises:
        ValueError: the network cannot be exported; one sentence.
    """
    makers: dict[str, Callable[[nn.Module, Tensor, LoadedRun], tuple[bytes, Tensor]]]
    makers = {"state-dict": _state_dict, "torch-export": _torch_export, "onnx": _onnx}
    try:
        with _quiet():
            return makers[name](net, images, run)
    # exporters raise whatever the code that they trace makes them
    except Exception as error:
        raise ValueError(f"the network cannot be exported as {name}: {first_line(error)}") from error


def _state_dict(net: nn.Module, images: Tensor, run: LoadedRun) -> tuple[bytes, Tensor]:
    from safetensors.torch import load, save

    # tied weights are stored twice, so that a plain load_state_dict takes them
    tensors = {name: value.detach().contiguous().clone() for name, value in net.state_dict().items()}
    content = save(tensors, metadata={"format": "pt"})
    # into the network that its name makes, as others will
    device = torch.device("cpu")
    made = preparation.build_network(run.config.student, run.config, run.data, device, weights=False)
    fresh = made.net.to(memory_format=torch.contiguous_format).eval()
    fresh.load_state_dict(load(content))
    logits: Tensor = fresh(images)
    return content, logits


def _torch_export(net: nn.Module, images: Tensor, run: LoadedRun) -> tuple[bytes, Tensor]:
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=_any_batch()), file)
    file.seek(0)
    logits: Tensor = torch.export.load(file).module()(images)
    return file.getvalue(), logits


def _onnx(net: nn.Module, images: Tensor, run: LoadedRun) -> tuple[bytes, Tensor]:
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(net, (images,), dynamo=True, dynamic_shapes=_any_batch(), verbose=False, **names)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return content, torch.from_numpy(logits)


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
