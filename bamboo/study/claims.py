"""The claims of the paper, judged by a stated rule from the numbers of a study."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from .results import NUMBERS, Results, Series

Verdict = Literal["holds", "does not hold", "within the spread", "not enough seeds", "not enough depths"]

RULE = (
    "For every seed, the trend of a number is the least-squares slope over log2(depth) through all shapes of the "
    "ladder: its change when depth doubles at equal parameters. A seed counts where all of its cells are finished. "
    "Over the seeds the trend has a mean and a 95 % interval (Student's t on one number per seed; two objectives are "
    "compared seed by seed). A claim holds where the whole interval lies on the claimed side of zero, does not hold "
    "where it lies on the other side, and is within the spread where it contains zero, which is no proof of either. "
    "One seed gives no interval. Smoothing is judged by excess similarity, (within - between) / (1 - between), which "
    "leaves out what the tokens of all samples have in common; by token similarity where a cell has no other."
)

SIMILARITY, EXCESS = "similarity", "excess"
ACCURACY = "accuracy"
MASKED_SCORES = (ACCURACY, "masked_accuracy")
"""What a masked objective is judged by: accuracy after fine-tuning, or else hidden tokens guessed right."""


@dataclass(frozen=True)
class Judgement:
    """A claim and what the numbers say.

    Args:
        objective: what it was judged on, with the values of axes.
        trend: mean over seeds of what the claim says is above (or not above) zero, per doubling of depth; `low` and
            `high` are the ends of its 95 % interval.
        seeds: trend of each seed that counts, of so many that were `asked` for.
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

    @property
    def interval(self) -> str:
        """The ends of the interval as people read them, empty where there is none."""
        return "" if self.low is None else f"{self.low:+.3f} to {self.high:+.3f}"


def judge(results: Results) -> list[Judgement]:
    """Every claim that the objectives of a study can be asked about."""
    return list(_judgements(results))


def _judgements(results: Results) -> Iterator[Judgement]:
    masked = [series for series in results.series if series.kind == "masked"]
    supervised = [series for series in results.series if series.kind == "supervised"]
    smoothing = EXCESS if all(EXCESS in outcome.numbers for outcome in results.done) else SIMILARITY
    words = NUMBERS[smoothing]
    for series in supervised:
        yield _judge(results, f"supervised {words} rises with depth", smoothing, [series])
    for series in supervised:
        for other in (other for other in masked if _agree(series, other)):
            yield _judge(results, f"{other.objective}'s {words} rises less with depth", smoothing, [series, other])
    for series in masked:
        if name := next((name for name in MASKED_SCORES if any(name in o.numbers for o in results.of(series))), None):
            yield _judge(results, f"deeper and narrower is better under {series.objective}", name, [series])
    for series in supervised:
        claim = "deeper and narrower is not better under supervision"
        yield _judge(results, claim, ACCURACY, [series], claimed=-1)


def _judge(results: Results, claim: str, name: str, compared: Sequence[Series], claimed: int = 1) -> Judgement:
    """Judge the trend of a number of one series, or by how much it lies above that of a second one."""
    slopes, *others = (trends(results, series, name) for series in compared)
    common = [seed for seed in slopes if all(seed in other for other in others)]
    seeds = {seed: slopes[seed] - sum(other[seed] for other in others) for seed in common}
    trend, low, high = interval([*seeds.values()])
    means = {series.label: _means(results, series, name) for series in compared}
    return Judgement(
        claim=claim,
        objective=" against ".join(reversed(means)),
        verdict=verdict(low, high, claimed) if _depths(results) > 1 else "not enough depths",
        trend=_number(trend),
        low=_number(low),
        high=_number(high),
        seeds=seeds,
        asked=len(results.study.seeds),
        evidence="; ".join(f"{label}: {text}" if len(means) > 1 else text for label, text in means.items()),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def trends(results: Results, series: Series, name: str) -> dict[int, float]:
    """The least-squares slope of a number over log2(depth), by seed, for the seeds whose cells are all finished.

    There are none where all shapes have one depth.
    """
    if _depths(results) < 2:
        return {}
    by_label = [results.values(series, label, name) for label in results.study.shapes]
    complete = [seed for seed in results.study.seeds if all(seed in values for values in by_label)]
    doublings = np.log2([shape.depth for shape in results.study.shapes.values()])
    return {seed: float(stats.linregress(doublings, [v[seed] for v in by_label]).slope) for seed in complete}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; NaN for what too few values do not give."""
    if len(values) < 2:
        return values[0] if values else math.nan, math.nan, math.nan
    mean, reach = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return float(mean), float(mean - reach), float(mean + reach)


def verdict(low: float, high: float, claimed: int = 1) -> Verdict:
    """What an interval says of the claim that a trend is above zero, or below it where `claimed` is -1."""
    if math.isnan(low):
        return "not enough seeds"
    if claimed < 0:
        low, high = -high, -low
    return "holds" if low > 0 else "does not hold" if high < 0 else "within the spread"


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


def _agree(first: Series, second: Series) -> bool:
    """Whether the axes that both have are at the same values."""
    left, right = dict(first.axes), dict(second.axes)
    return all(left[name] == right[name] for name in left.keys() & right.keys())
