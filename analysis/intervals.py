"""Means over samples, and how sure they are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
CHUNK = 50

Array = NDArray[np.float64]


class Estimates(NamedTuple):
    """Mean of each column, low and high end of its 95 % interval, and how many samples count."""

    mean: Array
    low: Array
    high: Array
    samples: NDArray[np.int64]


def bootstrap(values: NDArray[np.float32], seed: int = 0) -> Estimates:
    """Means over samples (rows) and their intervals; values that are not finite are left out.

    The interval is the percentile bootstrap over samples (rows): 1000 resamples, the same for all columns. A column
    with fewer than two samples has a mean and no interval (NaN).

    Args:
        values: (samples, columns).
        seed: of the resamples.
    """
    known = np.isfinite(values)
    count = known.sum(0)
    filled, present = np.where(known, values, 0.0).astype(np.float64), known.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / count
        generator, size = np.random.default_rng(seed), len(values)
        means = []
        for _ in range(RESAMPLES // CHUNK):
            weights = generator.multinomial(size, np.full(size, 1 / size), size=CHUNK).astype(np.float64)
            means.append((weights @ filled) / (weights @ present))
        drawn = np.concatenate(means)
    low, high = (_percentile(drawn, share, count) for share in (2.5, 97.5))
    return Estimates(mean, low, high, count)


def _percentile(drawn: Array, share: float, count: NDArray[np.int64]) -> Array:
    ends = np.full(len(count), np.nan)
    sure = count > 1
    if sure.any():
        ends[sure] = np.nanpercentile(drawn[:, sure], share, axis=0)
    return ends


def first_above(layers: list[int], curve: Array, level: float) -> int | None:
    """The first layer at which a curve reaches a level, None if it never does."""
    return next((layer for layer, value in zip(layers, curve, strict=True) if value >= level), None)


def say_first(layer: int | None) -> str:
    """`first_above` in words."""
    return "never" if layer is None else str(layer) if layer else "starts above"


def slope(layers: list[int], curve: Array) -> float:
    """Least-squares slope of a curve over relative depth: its change from the embedding to the last block, about."""
    known = np.isfinite(curve)
    if known.sum() < 2:
        return float("nan")
    depth = np.asarray(layers, dtype=np.float64)[known] / max(layers)
    return float(np.polyfit(depth, curve[known], 1)[0])
