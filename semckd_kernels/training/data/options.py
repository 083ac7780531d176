"""What every data set is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .draw import Draw
from .sampling import Share


@dataclass(frozen=True)
class Options:
    """Arguments of :func:`.build` but the name; see there."""

    share: Share
    draw: Draw
    device: torch.device
    root: Path | None = None
    workers: int = 0
    download: bool = False
    image_size: int | None = None
    augment: bool = True
    skip_broken: bool = False
