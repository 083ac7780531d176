"""The student of a finished run for use elsewhere: a file that was checked against the run, and a model card."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..export_formats import FILES, FORMATS
from ..run.checkpoint import write_file
from ..run.folder import RunFolder
from . import card, formats

__all__ = ["FORMATS", "ExportError", "Exported", "export"]

# of the largest logit: rounding of another order of sums, through all layers of a network
TOLERANCE = 1e-3


class ExportError(RuntimeError):
    """A file that does not compute what the run's network does; it was not written."""


class Exported(NamedTuple):
    """What was written, and how it compared with the run's network on a batch of test images."""

    files: list[Path]
    images: int
    top1: float
    # the largest absolute one, of the logits, by format
    differences: dict[str, float]


@torch.no_grad()
def export(
    run: str | Path | RunFolder,
    form: str | tuple[str, ...] = "state-dict",
    out: Path | None = None,
    which: str = "best",
) -> Exported:
    """Writes the student alone, the moving average of its weights where the run has one, and ``README.md``.

    Args:
        run: a finished run's folder. Its data set is read, for a batch of test images.
        form: one or several of ``FORMATS``: ``state-dict`` (``model.safetensors``), ``torch-export`` (``model.pt2``)
            and ``onnx`` (``model.onnx``). The batch size is free.
        out: the folder to write into; the run's own ``export`` unless given.
        which: of the run's checkpoints, ``best`` or ``last``.

    Raises:
        ValueError, OSError, CheckpointError: the run, its data or a package is not there, or the network cannot be
            exported.
        ExportError: what a file computes differs from what the run's network computes.

    Example:
        >>> from semckd_kernels.training.export import export, FORMATS
        >>> FORMATS
        ('state-dict', 'torch-export', 'onnx')
    """
    wanted = (form,) if isinstance(form, str) else tuple(dict.fromkeys(form))
    for name in wanted:
        formats.check(name)
    card.check()
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    folder.verify()
    loaded = folder.load(which=which)
    net = copy.deepcopy(loaded.student.net).to(memory_format=torch.contiguous_format).eval()
    batch = next(iter(loaded.data.test_batches()))
    # an export takes a batch of one for a constant
    images = batch.images.contiguous().repeat(1 if len(batch.images) > 1 else 2, 1, 1, 1)
    expected = net(images)
    made, differences = {}, {}
    for name in wanted:
        made[name], computed = formats.make(name, net, images, loaded)
        differences[name] = _compared(name, computed, expected)
    top1 = float((expected[: len(batch.labels)].argmax(1) == batch.labels).float().mean())
    target = folder.path / "export" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / FILES[name] for name in wanted]
    for path, content in zip(files, made.values(), strict=True):
        write_file(path, content)
    exported = Exported([*files, target / card.NAME], len(batch.labels), top1, differences)
    text = card.write(folder, loaded, which, exported._asdict())
    write_file(target / card.NAME, text.encode())
    return exported


def _compared(name: str, computed: Tensor, expected: Tensor) -> float:
    if computed.shape != expected.shape:
        raise ExportError(f"{name}: the file gives {list(computed.shape)}, the run's network {list(expected.shape)}")
    difference = float((computed - expected).abs().max())
    bound = TOLERANCE * float(expected.abs().max())
    # a value that is not a number fails as well
    if not difference <= bound:
        raise ExportError(
            f"{name}: the file's logits differ from those of the run's network by {difference:.3g} on a batch of "
            f"{len(expected)} images, more than {bound:.3g}: nothing was written"
        )
    return difference
