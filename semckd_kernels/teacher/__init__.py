"""A frozen teacher that costs what it should: BatchNorms, ReLUs and additions inside of its convolutions.

===============  =====================================================================================
``prepare``      :func:`prepare_teacher`, and :func:`folded`: what it has done to a network
``graphs``       what calls what in a network, by ``torch.fx``
``groups``       convolution -> BatchNorm -> addition -> ReLU where nobody else looks at what is between
``convolution``  :class:`FrozenConv2d`, which serves such a group
===============  =====================================================================================
"""

from __future__ import annotations

from .convolution import FrozenConv2d
from .prepare import folded, prepare_teacher

__all__ = ["FrozenConv2d", "folded", "prepare_teacher"]
