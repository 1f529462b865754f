"""What a few seeds say of a mean: its interval, its p, how many seeds it would need, and Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.05
MOST_SEEDS = 1000
"""Beyond which nobody counts."""


@dataclass(frozen=True)
class Estimate:
    """A sum of the means of independent samples.

    Args:
        effect: the sum; NaN where a sample is empty.
        sds: standard deviation of each sample.
        sizes: number of values of each.
        known: the deviations are not those of the samples but known, and the sum is normal.
    """

    effect: float
    sds: NDArray[np.float64]
    sizes: NDArray[np.int64]
    known: bool = False

    @property
    def error(self) -> float:
        """The standard error of the sum; NaN where a sample has no deviation."""
        return float(np.sqrt((self.sds**2 / self.sizes).sum())) if self.sizes.all() else math.nan

    @property
    def freedom(self) -> float:
        """Degrees of freedom: those of Student, and of Welch 1947 for several samples."""
        return math.inf if self.known else float(_freedom(self.sds, self.sizes))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval; NaN where there is none."""
        reach = self.error * stats.t.ppf(1 - LEVEL / 2, self.freedom) if self.error > 0 else self.error
        return self.effect - reach, self.effect + reach

    @property
    def p(self) -> float:
        """Two-sided p of no effect; NaN where there is no spread, but for rounding, to test it by."""
        if not self.error > 1e-12:
            return math.nan
        return float(2 * stats.t.sf(abs(self.effect) / self.error, self.freedom))

    def seeds_needed(self, level: float = LEVEL) -> int | None:
        """The fewest seeds, as many in each sample, whose interval at 1 - `level` would exclude zero.

        That is for the same effect and deviations; None where `MOST_SEEDS` would not do.
        """
        sizes = np.arange(2, MOST_SEEDS + 1)[:, None]
        reach = np.sqrt((self.sds**2 / sizes).sum(1)) * stats.t.ppf(1 - level / 2, _freedom(self.sds, sizes))
        enough = reach < abs(self.effect)
        return int(sizes[enough.argmax(), 0]) if enough.any() else None


def _freedom(sds: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    variances = sds**2 / sizes
    with np.errstate(invalid="ignore", divide="ignore"):  # without any spread
        return np.asarray(variances.sum(-1) ** 2 / (variances**2 / (sizes - 1)).sum(-1))


def estimate(samples: Sequence[ArrayLike], known_sds: Sequence[float] | None = None) -> Estimate:
    """The sum of the means of samples; by known deviations, if there are any, where a sample has but one value."""
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    sizes = np.array([array.size for array in arrays])
    effect = float(sum(array.mean() for array in arrays)) if sizes.all() else math.nan
    known = known_sds is not None and bool(sizes.all()) and sizes.min() < 2
    sds = known_sds if known else [array.std(ddof=1) if array.size > 1 else math.nan for array in arrays]
    return Estimate(effect, np.array(sds, np.float64), sizes, known)


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; NaN for what too few values do not give."""
    mean = estimate([values])
    return mean.effect, *mean.interval


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Values of p corrected for their number by Holm 1979, where they are known."""
    values = np.asarray(p, np.float64)
    corrected, known = np.full(len(values), math.nan), np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * (len(order) - np.arange(len(order)))))
    return corrected
