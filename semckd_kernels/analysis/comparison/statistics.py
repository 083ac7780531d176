r"""Mean and deviation over seeds, and whether two methods differ by more than seeds do.

.. math::
    \bar d \pm t_{0.975, \, n - 1} \frac{s}{\sqrt n}

is the interval of a mean difference :math:`\bar d` of n seeds with standard deviation s (Student's t). Where two
methods share seeds, d is the difference of two runs of one seed, which removes what the seed does to both of them;
where they do not, s and the degrees of freedom are Welch's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95
BEYOND, WITHIN, UNKNOWN = "beyond noise", "within noise", "nothing can be said"


@dataclass(frozen=True)
class Spread:
    """Number, mean and standard deviation (of a sample: n - 1) of values; the deviation of one value is nan."""

    n: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Difference:
    """A mean difference with its standard error and interval, which are nan where there is nothing to tell them from.

    ``n`` is the number of pairs where it is ``paired``, and that of the smaller side where it is not.
    """

    mean: float
    error: float
    low: float
    high: float
    n: int
    paired: bool

    @property
    def verdict(self) -> str:
        """One of :data:`BEYOND`, :data:`WITHIN`, :data:`UNKNOWN`."""
        if math.isnan(self.error):
            return UNKNOWN
        return WITHIN if self.low <= 0 <= self.high else BEYOND


def spread(values: Collection[float]) -> Spread:
    """Raises ValueError where there is no value."""
    if not values:
        raise ValueError("values must hold one number at least, got none")
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(len(values), statistics.fmean(values), deviation)


def difference(a: Mapping[int, float], b: Mapping[int, float], images: int) -> Difference:
    """The accuracies a minus b.

    Args:
        a, b: accuracies from 0 to 1 by seed. Two seeds or more that both have are paired, others are left out then.
        images: that an accuracy is measured on. A few seeds may happen to agree to the image; their variance is never
            taken to be below that of rounding to whole images, ``1 / (12 images^2)``.

    Example:
        >>> from semckd_kernels.analysis.comparison.statistics import difference
        >>> found = difference({0: 0.98, 1: 0.97, 2: 0.99}, {0: 0.96, 1: 0.96, 2: 0.96}, images=1000)
        >>> f"{found.mean:.3f} +- {found.error:.3f}, {found.low:.3f} to {found.high:.3f}: {found.verdict}"
        '0.020 +- 0.006, -0.005 to 0.045: within noise'
    """
    rounding = 1.0 / (12.0 * images**2)
    seeds = a.keys() & b.keys()
    if len(seeds) > 1:
        n, apart = len(seeds), [a[seed] - b[seed] for seed in seeds]
        # of two accuracies
        variance = max(statistics.variance(apart), 2.0 * rounding)
        return _interval(statistics.fmean(apart), math.sqrt(variance / n), n - 1, n, paired=True)
    mean = statistics.fmean(a.values()) - statistics.fmean(b.values())
    n = min(len(a), len(b))
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, n, paired=bool(seeds))
    parts = [(max(statistics.variance(side.values()), rounding) / len(side), len(side)) for side in (a, b)]
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / (size - 1) for part, size in parts)
    return _interval(mean, math.sqrt(total), freedom, n, paired=False)


def _interval(mean: float, error: float, freedom: float, n: int, paired: bool) -> Difference:
    reach = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    return Difference(mean, error, mean - reach, mean + reach, n, paired)
