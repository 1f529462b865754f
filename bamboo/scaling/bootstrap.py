"""Numbers with 95 % intervals, by the percentile bootstrap (Efron 1979)."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(values: Array) -> Estimate:
    """The first of the values, with the 2.5th and the 97.5th percentile of the others, which resampled data gave."""
    return Estimate(float(values[0]), *(float(end) for end in np.percentile(values[1:], (2.5, 97.5))))


def resample(size: int, count: int, enough: Callable[[Indices], bool], seed: int) -> list[Indices]:
    """All of `size` indices, then `count` draws of as many with replacement, for which `enough` is true.

    Raises `InputError` where hardly any draw is enough to be fitted.
    """
    generator = np.random.default_rng(seed)
    draws = (generator.integers(size, size=size) for _ in range(100 * count))
    chosen = [np.arange(size), *islice(filter(enough, draws), count)]
    if len(chosen) <= count:
        raise InputError(f"{size} runs are too few for intervals by bootstrap: give more runs")
    return chosen
