"""The documentation site: ``make docs`` builds it into build/site, and any warning is an error."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import semckd_kernels

project = "semckd_kernels"
author = "the semckd_kernels authors"
release = version = semckd_kernels.__version__
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "attrs_block", "attrs_inline", "html_image", "colon_fence"]
myst_heading_anchors = 3
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# the plug-ins' own docstrings are shown without the libraries, too
autodoc_mock_imports = [name for name in ("timm", "torchdistill") if find_spec(name) is None]
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Types", "Source", "Call", "Shape"]

html_theme = "furo"
html_title = "semckd_kernels"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
# formulas are MathML when the site is built: browsers show it without a script or a network
html_math_renderer = "mathml"


def _inline(translator: Any, node: nodes.Node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.Node) -> None:
    translator.body.append(f'<div class="math">{convert(_without_alignment(node.astext()), display="block")}</div>')
    raise nodes.SkipNode


def _without_alignment(latex: str) -> str:
    """Lines with & and \\\\ belong to an environment that LaTeX's reader knows."""
    return rf"\begin{{aligned}}{latex}\end{{aligned}}" if r"\\" in latex and r"\begin" not in latex else latex


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
