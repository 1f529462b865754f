"""The numbers behind a claim, by seed and shape, and what a reader should know of them, in words."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from .claims import ACCURACY, EXCESS, Claim
from .results import Results, Series

MOVED = "excess_moved"
"""The number of a cell that says how far its excess similarity moved over the last third of training, in log steps."""

RESAMPLES = 10_000


def table(results: Results, quantity: str, series: Series) -> pd.DataFrame:
    """A quantity of a series, of which seed (rows) and shape (columns); NaN where it is not known.

    Of `excess` it is what training adds. In others a cell that diverged has the worst value of any finished cell.
    """
    columns = {label: _values(results, quantity, series, label) for label in results.study.shapes}
    return pd.DataFrame(columns, index=results.study.seeds, dtype=float)


def _values(results: Results, quantity: str, series: Series, label: str) -> dict[int, float]:
    known = results.values(series, label, quantity)
    if quantity == EXCESS:
        untrained = results.values(series, label, "excess_untrained")
        return {seed: value - untrained.get(seed, math.nan) for seed, value in known.items()}
    worst = max if quantity.startswith("loss") else min
    value = worst((done.numbers[quantity] for done in results.done if quantity in done.numbers), default=math.nan)
    return known | {outcome.cell.seed: value for outcome in results.diverged(series, label)}


def sample(results: Results, quantity: str, series: Series, weights: Mapping[str, float]) -> dict[int, float]:
    """The weighted sum over shapes of a quantity by seed, of the seeds that have it at all of them."""
    complete = table(results, quantity, series)[[*weights]].dropna()
    return dict((complete @ pd.Series(weights, dtype=float)).items())


def best_shapes(results: Results, quantity: str, series: Series) -> dict[str, float]:
    """How often each shape has the highest mean, as a share of bootstrap resamples of the seeds that have all shapes.

    Shapes that never have it are left out, and there are none where there is one seed.
    """
    complete = table(results, quantity, series).dropna()
    if len(complete) < 2:
        return {}
    drawn = np.random.default_rng(0).integers(len(complete), size=(RESAMPLES, len(complete)))
    best = complete.columns[complete.to_numpy()[drawn].mean(axis=1).argmax(axis=1)]
    return dict(best.value_counts(normalize=True).items())


def in_words(results: Results, claim: Claim, seeds: Mapping[str, list[int]]) -> str:
    """What may keep a claim from being decided, and the means by shape behind it, `seeds` being those that count."""
    return "; ".join([*_doubts(results, claim, seeds), *_means(results, claim), *_best(results, claim)])


def _doubts(results: Results, claim: Claim, seeds: Mapping[str, list[int]]) -> Iterator[str]:
    cells = [(series, label) for series in claim.series for label in results.study.shapes]
    diverged = [outcome.cell.name for cell in cells for outcome in results.diverged(*cell)]
    if diverged:
        yield f"diverged: {', '.join(diverged)}"
    if claim.quantity == EXCESS:
        done = [outcome for series in claim.series for outcome in results.of(series)]
        moved = [outcome.numbers[MOVED] for outcome in done if MOVED in outcome.numbers]
        if moved:
            yield f"a cell moved by up to {max(moved):.3f} over the last third of training"
        if len(moved) < len(done):
            yield f"whether it has settled is not known of {len(done) - len(moved)} of {len(done)} cells"
    fewest = min(map(len, seeds.values()))
    if not (diverged and claim.quantity == EXCESS) and fewest < 2:
        one = "normal by known_sd" if claim.quantity in results.study.known_sd else "which gives no interval"
        yield f"one seed, {one}" if fewest else "no seed has all cells"


def _means(results: Results, claim: Claim) -> Iterator[str]:
    """The mean of each shape, and of how many seeds where some are missing."""
    asked = len(results.study.seeds)
    for series in claim.series:
        parts = []
        for label, column in table(results, claim.quantity, series).items():
            count = column.count()
            short = f" ({count} of {asked} seeds)" if 0 < count < asked else ""
            parts.append(f"{label} {column.mean():.3f}{short}" if count else f"{label} none")
        yield f"{series.label}: {', '.join(parts)}"


def _best(results: Results, claim: Claim) -> Iterator[str]:
    """Which shape is best for accuracy, where two objectives are compared."""
    for series in claim.series if claim.quantity == ACCURACY and len(claim.series) > 1 else ():
        if shares := best_shapes(results, claim.quantity, series):
            text = ", ".join(f"{label} in {share:.0%}" for label, share in shares.items())
            yield f"best shape under {series.label}, of {RESAMPLES:,} resamples of the seeds: {text}"
