"""How large a weight of the attention can become, and which weights are there."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# share of the way from equal weights to the bound from which a weight counts as being there
AT_BOUND = 0.99


def upper_bound(teachers: int, soft: float = 1.0) -> float:
    r"""The largest weight that the attention can give one of T teacher layers.

    .. math::
        \frac{e^{1/\tau}}{e^{1/\tau} + (T - 1) \, e^{-1/\tau}} = \frac{1}{1 + (T - 1) \, e^{-2/\tau}}

    Queries and keys have length 1, so that energies are cosines over the temperature :math:`\tau` (``soft``): at best
    1 for one layer and -1 for all others.

    Example:
        >>> from semckd_kernels.training.report.attention_bound import upper_bound
        >>> round(upper_bound(3), 4)
        0.787
    """
    return 1.0 / (1.0 + (teachers - 1) * math.exp(-2.0 / soft))


def at_bound(weight: NDArray[np.float64], soft: float) -> NDArray[np.bool_]:
    """Which weights ``[..., T]`` have come AT_BOUND of the way from equal weights to :func:`upper_bound`.

    None of them where there is no way to go: a single teacher layer, or an attention that is switched off.
    """
    teachers = weight.shape[-1]
    bound, equal = upper_bound(teachers, soft), 1.0 / teachers
    if bound - equal < 1e-6:
        return np.zeros(weight.shape, dtype=np.bool_)
    reached: NDArray[np.bool_] = weight >= equal + AT_BOUND * (bound - equal)
    return reached


def bound_note(weight: NDArray[np.float64], soft: float) -> str:
    """A sentence on the weights that are at their bound; empty where none is."""
    count = int(at_bound(weight, soft).sum())
    if not count:
        return ""
    bound = upper_bound(weight.shape[-1], soft)
    what = "1 weight is" if count == 1 else f"{count} weights are"
    return (
        f"{what} at the upper bound {bound:.3f}: energies are cosines over soft = {soft:g}, so that the softmax over "
        f"{weight.shape[-1]} teacher layers gives no layer more."
    )
