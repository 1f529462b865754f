"""A power law y = c x^k through points, robust against outliers, with intervals by bootstrap over the points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bamboo.errors import InputError

from .estimates import Array, Estimate, Indices, estimate, resample

CLIP = 2.0  # residuals count in full up to so many standard deviations: 99 % as efficient as least squares
STEPS = 50
NEAR = 1e-6  # logs of x that are no further apart are the same but for rounding


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """y = prefactor x^exponent.

    Args:
        x: (points,) where it was measured.
        y: (points,) what was measured.
        prefactor: c; at x = 1, which is often far from the points, so that its interval is wide.
        exponent: k.
        draws: (resamples, 2) log c and k of resampled points.
    """

    x: Array
    y: Array
    prefactor: Estimate
    exponent: Estimate
    draws: Array

    def predict(self, x: float) -> Estimate:
        """y at some x, with the interval of the law (not of a single new measurement)."""
        values = self.draws[:, 0] + self.draws[:, 1] * np.log(x)
        return estimate(self.prefactor.value * x**self.exponent.value, np.exp(values))


def fit_power_law(
    x: Sequence[float] | Array, y: Sequence[float] | Array, resamples: int = 1000, seed: int = 0
) -> PowerLaw:
    """Fit a line through log x and log y by Huber's M-estimate.

    It starts from the median of the slopes between pairs of points (Theil 1950, Sen 1968), takes the scale of the noise
    from the median absolute residual there, and lowers the weight of points that lie more than 2 such standard
    deviations off (Huber 1964). Where no point does, it is the least-squares line.

    Args:
        x: (points,) positive, at least 3 different ones.
        y: (points,) positive.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        InputError: for fewer than 3 different x, or numbers that are not positive and finite.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"a power law needs as many x as y, got {x.shape} and {y.shape}")
    if not all(np.all(np.isfinite(values) & (values > 0)) for values in (x, y)):
        raise InputError("a power law needs positive, finite numbers")
    across, up = np.log(x), np.log(y)
    if _distinct(across) < 3:
        raise InputError(f"a power law needs at least 3 different x, got {_distinct(across)}")

    def enough(draw: Indices) -> bool:
        return _distinct(across[draw]) > 1

    level, slope = _line(across, up)
    draws = np.array([_line(across[i], up[i]) for i in resample(len(x), resamples, enough, seed)])
    prefactor = estimate(np.exp(level), np.exp(draws[:, 0]))
    return PowerLaw(x, y, prefactor, estimate(slope, draws[:, 1]), draws)


def _distinct(x: Array) -> int:
    return 1 + int((np.diff(np.sort(x)) > NEAR).sum()) if len(x) else 0


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Level at 0 and slope."""
    one, other = np.triu_indices(len(x), 1)
    run = x[other] - x[one]
    apart = np.abs(run) > NEAR
    slope = float(np.median((y[other] - y[one])[apart] / run[apart]))
    level = float(np.median(y - slope * x))
    scale = 1.4826 * float(np.median(np.abs(y - level - slope * x)))
    if scale < 1e-12 * (1 + np.abs(y).max()):
        return level, slope  # more than half of the points lie on the line: the others are outliers
    for _ in range(STEPS):
        residual = np.abs(y - level - slope * x) / scale
        weight = CLIP / np.maximum(residual, CLIP)
        before, (level, slope) = (level, slope), _weighted(x, y, weight)
        if np.allclose(before, (level, slope), rtol=1e-10, atol=1e-12):
            break
    return level, slope


def _weighted(x: Array, y: Array, weight: Array) -> tuple[float, float]:
    """The line of weighted least squares."""
    centre, middle = np.average(x, weights=weight), np.average(y, weights=weight)
    slope = float((weight * (x - centre) * (y - middle)).sum() / (weight * (x - centre) ** 2).sum())
    return float(middle - slope * centre), slope
