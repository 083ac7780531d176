"""Pages that need nothing outside themselves: one frame and one style, ``page.html.jinja``, for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from . import charts

HERE = Path(__file__).parent


def render(template: str, folder: Path = HERE, **values: Any) -> str:
    """A template as HTML.

    Args:
        template: extends ``page.html.jinja``, which takes ``title``, ``subtitle`` and ``facts``.
        folder: where it is, where that is not here.
        values: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    themes = {"light": charts.css_variables(dark=False), "dark": charts.css_variables(dark=True)}
    return environment.get_template(template).render(**themes, **values)
