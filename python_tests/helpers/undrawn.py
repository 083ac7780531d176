"""Charts that are made but not drawn: drawing them takes longer than the training of a tiny run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# what draws, as it was before the first call of ``undrawn``
_drawing: dict[str, Any] = {}


@contextmanager
def undrawn(pictures: bool = False) -> Iterator[None]:
    """Reports whose charts are empty ``<svg>`` elements with their descriptions; all else in them is as it is.

    Args:
        pictures: the pictures of analyses are not drawn either, but empty files.
    """
    from semckd_kernels.training.report import charts

    if not _drawing:
        _drawing.update(svg=charts.svg, pictures=charts.pictures)

    def empty_svg(figure: Any, name: str, description: str) -> str:
        return f'<svg role="img" aria-label="{charts._escape(description)}"></svg>'

    def empty_pictures(name: str, figure: Any) -> dict[str, bytes]:
        return {f"{name}.{kind}": b"" for kind in ("png", "svg", "pdf")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "svg", empty_svg)
        if pictures:
            patch.setattr(charts, "pictures", empty_pictures)
        yield


@contextmanager
def drawn() -> Iterator[None]:
    """Everything is drawn again, inside of ``undrawn``."""
    from semckd_kernels.training.report import charts

    with pytest.MonkeyPatch.context() as patch:
        for name, function in _drawing.items():
            patch.setattr(charts, name, function)
        yield
