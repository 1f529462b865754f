"""The claims of the paper, judged by a stated rule from the numbers of a study."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from .results import Results, Series

Verdict = Literal["holds", "does not hold", "within the spread", "not enough seeds", "not enough depths"]

RULE = (
    "For every seed, the trend of a number is the least-squares slope over log2(depth) through all shapes of the "
    "ladder: its change when depth doubles at equal parameters. A seed counts where all of its cells are finished. "
    "Over the seeds the trend has a mean and a 95 % interval (Student's t on one number per seed; two objectives are "
    "compared seed by seed). A claim holds where the whole interval lies on the claimed side of zero, does not hold "
    "where it lies on the other side, and is within the spread where it contains zero, which is no proof of either. "
    "One seed gives no interval."
)

SIMILARITY = "similarity"
ACCURACY = "accuracy"
MASKED_SCORES = (ACCURACY, "masked_accuracy")
"""What a masked objective is judged by: accuracy after fine-tuning, or else hidden tokens guessed right."""


@dataclass(frozen=True)
class Judgement:
    """A claim and what the numbers say.

    Args:
        claim: in words.
        objective: what it was judged on, with the values of axes.
        verdict: in words.
        trend: mean over seeds of what the claim says is above (or not above) zero, per doubling of depth.
        low: lower end of its 95 % interval.
        high: upper end.
        seeds: trend of each seed that counts.
        asked: seeds of the study.
        evidence: the means behind it, in words.
    """

    claim: str
    objective: str
    verdict: Verdict
    trend: float | None
    low: float | None
    high: float | None
    seeds: dict[int, float]
    asked: int
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def judge(results: Results) -> list[Judgement]:
    """Every claim that the objectives of a study can be asked about."""
    return list(_judgements(results))


def _judgements(results: Results) -> Iterator[Judgement]:
    masked = [one for one in results.series if one.kind == "masked"]
    supervised = [one for one in results.series if one.kind == "supervised"]
    for one in supervised:
        yield _one(results, "supervised similarity rises with depth", one, SIMILARITY)
    for one in supervised:
        for two in masked:
            if _agree(one, two):
                yield _two(results, f"{two.objective}'s similarity rises less with depth", one, two)
    for one in masked:
        if name := next((name for name in MASKED_SCORES if _any(results, one, name)), None):
            yield _one(results, f"deeper and narrower is better under {one.objective}", one, name)
    for one in supervised:
        yield _one(results, "deeper and narrower is not better under supervision", one, ACCURACY, claimed=-1)


def trends(results: Results, series: Series, name: str) -> dict[int, float]:
    """The slope of a number over log2(depth), by seed, for the seeds whose cells are all finished."""
    by_label = [results.values(series, label, name) for label in results.study.shapes]
    complete = [seed for seed in results.study.seeds if all(seed in values for values in by_label)]
    depths = [shape.depth for shape in results.study.shapes.values()]
    return {seed: slope(depths, [values[seed] for values in by_label]) for seed in complete}


def slope(depths: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope over log2(depth): the change when depth doubles."""
    x = np.log2(np.asarray(depths, dtype=np.float64))
    x = x - x.mean()
    return float(x @ np.asarray(values) / (x @ x))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; NaN ends for fewer than two values."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    reach = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return mean, mean - reach, mean + reach


def verdict(low: float, high: float, claimed: int = 1) -> Verdict:
    """What an interval says of the claim that a trend is above zero, or below it where `claimed` is -1."""
    if claimed < 0:
        low, high = -high, -low
    return "holds" if low > 0 else "does not hold" if high < 0 else "within the spread"


def _one(results: Results, claim: str, series: Series, name: str, claimed: int = 1) -> Judgement:
    found = trends(results, series, name) if _depths(results) > 1 else {}
    return _judgement(results, claim, series.label, found, claimed, _means(results, series, name))


def _two(results: Results, claim: str, supervised: Series, masked: Series) -> Judgement:
    found = {}
    if _depths(results) > 1:
        one, two = (trends(results, series, SIMILARITY) for series in (supervised, masked))
        found = {seed: one[seed] - two[seed] for seed in one if seed in two}
    evidence = "; ".join(f"{s.label}: {_means(results, s, SIMILARITY)}" for s in (supervised, masked))
    return _judgement(results, claim, f"{masked.label} against {supervised.label}", found, 1, evidence)


def _judgement(
    results: Results, claim: str, objective: str, found: Mapping[int, float], claimed: int, evidence: str
) -> Judgement:
    asked = len(results.study.seeds)
    said: Verdict
    mean, low, high = interval([*found.values()]) if found else (math.nan, math.nan, math.nan)
    if _depths(results) < 2:
        said = "not enough depths"
    else:
        said = "not enough seeds" if len(found) < 2 else verdict(low, high, claimed)
    trend, *ends = (None if math.isnan(value) else value for value in (mean, low, high))
    return Judgement(claim, objective, said, trend, ends[0], ends[1], dict(found), asked, evidence)


def _means(results: Results, series: Series, name: str) -> str:
    """The mean of each shape, and of how many seeds where some are missing."""
    asked, parts = len(results.study.seeds), []
    for label in results.study.shapes:
        values = results.values(series, label, name)
        short = f" ({len(values)} of {asked} seeds)" if 0 < len(values) < asked else ""
        parts.append(f"{label} {np.mean([*values.values()]):.3f}{short}" if values else f"{label} none")
    return ", ".join(parts)


def _depths(results: Results) -> int:
    return len({shape.depth for shape in results.study.shapes.values()})


def _any(results: Results, series: Series, name: str) -> bool:
    return any(name in found.numbers for found in results.of(series))


def _agree(one: Series, two: Series) -> bool:
    """Whether the axes that both have are at the same values."""
    left, right = dict(one.axes), dict(two.axes)
    return all(left[name] == right[name] for name in left.keys() & right.keys())
