"""Numbers with intervals, from the bootstrap."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError
from bamboo.seeds import derive_seed

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
TRIES = 1000


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(value: float, draws: Array) -> Estimate:
    """A number with the 2.5th and the 97.5th percentile of what resampled data give in its place."""
    return Estimate(float(value), *(float(end) for end in np.percentile(draws, (2.5, 97.5))))


def resample(size: int, count: int, enough: Callable[[Indices], bool], seed: int) -> Iterator[Indices]:
    """Draws with replacement from `size` things, as indices; those that cannot be fitted are drawn again.

    Draw k is a pure function of the seed and k.

    Args:
        size: number of things, of which each draw takes as many.
        count: number of draws.
        enough: whether a draw can be fitted.
        seed: of the draws.

    Raises:
        InputError: where next to no draw can be fitted.
    """
    for k in range(count):
        generator = np.random.default_rng(derive_seed(seed, "bootstrap", k))
        draws = (generator.integers(size, size=size) for _ in range(TRIES))
        draw = next((draw for draw in draws if enough(draw)), None)
        if draw is None:
            raise InputError(f"{size} runs are too few for intervals by bootstrap: give more runs")
        yield draw
