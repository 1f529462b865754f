"""Claims judged from the numbers of a study by a stated rule."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from bamboo.intervals import LEVEL, MOST_SEEDS, Estimate, estimate, holm

from .claims import EXCESS, Claim, Contrast, claims
from .evidence import MOVED, in_words, sample
from .results import NUMBERS, Results, Series

Verdict = Literal["holds", "contradicted", "no difference within the margin", "undecided", "not settled"]

RULE = (
    "A claim is a contrast, a weighted sum of one number over cells: the difference of two cells, or the least-squares "
    "slope over log2(depth) through all shapes, which is the change when depth doubles at equal parameters. Smoothing "
    "is what training adds to excess similarity, (within - between) / (1 - between), after the last block. A seed "
    "counts where all cells of the contrast are finished. A cell whose training diverged counts with the worst value "
    "that any finished cell of the study has in the number, and nothing is decided about smoothing where it is; a cell "
    "that failed otherwise leaves its seed out. Two objectives are compared seed by seed where they have the same "
    "seeds, which stand for the same first weights and order of samples, and as two samples (Welch) where they have "
    "not. Intervals are at 95 % by Student's t over seeds; with one seed, normal with the study's known_sd of each "
    "cell, if there is one. Two-sided values of p are corrected by Holm over all claims that have one. What is claimed "
    "of every depth is judged by the depth with the greatest p or, where some lie on the other side, by the smallest p "
    "of those, times the number of depths. The verdict is the first of these that applies. Not settled: at a shape of "
    "the contrast, excess similarity moved over the last third of training, in log steps, by more than the effect or, "
    "where the interval lies within the margin, by more than that, on average over seeds; or by how much is not known "
    "of a cell. No difference: the whole interval lies within the "
    f"margin. Holds, contradicted: the corrected p is below {LEVEL:g}, the effect on the claimed or the other side. "
    "Undecided: all else; the seeds needed are the fewest with which an effect and spread like these pass whatever the "
    "other claims do."
)


@dataclass(frozen=True)
class Judgement:
    """A claim and what the numbers say.

    Args:
        series: what it was judged on: objectives with the values of axes.
        contrast: that of which effect, interval and p are: the one that decides, where a claim has several.
        effect: in units of the quantity, None where no seed has it; `low` and `high` are the ends of its interval.
        p: two-sided, None where there is no interval; `p_holm` is corrected for all claims of the report.
        seeds: those that count, by series.
        seeds_needed: of an undecided claim, a number or that it is too large; empty where it is not known.
        evidence: why it is undecided, and the means behind it, in words.
    """

    statement: str
    series: str
    quantity: str
    contrast: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    margin: float
    seeds: dict[str, list[int]]
    seeds_needed: str
    evidence: str

    def __str__(self) -> str:
        p = "" if self.p_holm is None else f", p {self.p_holm:.4f}"
        effect = "" if self.effect is None else f": {self.effect:+.4f} {self.contrast}"
        interval = f" ({self.interval}{p})" if self.interval else ""
        seeds = f"; it would take {self.seeds_needed} seeds" if self.seeds_needed else ""
        return f"{self.statement} [{self.series}]: {self.verdict}{effect}{interval}{seeds}"

    @property
    def interval(self) -> str:
        """The ends of the interval as people read them, empty where there is none."""
        return "" if self.low is None else f"{self.low:+.4f} to {self.high:+.4f}"


class _Part(NamedTuple):
    """A contrast of a claim as measured, and how far similarity moved at last, at most, at one of its shapes."""

    name: str
    seeds: dict[str, list[int]]
    estimate: Estimate
    moved: float


class _Test(NamedTuple):
    """A claim as measured, the part that decides on it, and its p."""

    claim: Claim
    parts: list[_Part]
    decides: _Part
    times: int
    p: float


def judge(results: Results) -> list[Judgement]:
    """Every claim of a study, and what its numbers say."""
    tests = [_test(results, claim) for claim in claims(results)]
    corrected = holm([test.p for test in tests])
    level = LEVEL / max(1, np.isfinite(corrected).sum())
    return [_judgement(results, test, float(p), level) for test, p in zip(tests, corrected, strict=True)]


def _test(results: Results, claim: Claim) -> _Test:
    """All parts must lie on the claimed side: an intersection-union test, and Bonferroni's for that one does not."""
    parts = [_measure(results, claim, name, contrast) for name, contrast in claim.contrasts.items()]
    if unknown := [part for part in parts if math.isnan(part.estimate.p)]:
        return _Test(claim, parts, unknown[0], 1, math.nan)
    if contrary := [part for part in parts if part.estimate.effect * claim.sign <= 0]:
        decides, times = min(contrary, key=lambda part: part.estimate.p), len(parts)
    else:
        decides, times = max(parts, key=lambda part: part.estimate.p), 1
    return _Test(claim, parts, decides, times, min(1.0, times * decides.estimate.p))


def _measure(results: Results, claim: Claim, name: str, contrast: Contrast) -> _Part:
    cells = [(series, label) for series, weights in contrast.items() for label in weights]
    smoothing = claim.quantity == EXCESS
    moved = [_moved(results, *cell) for cell in cells if smoothing]
    diverged = smoothing and any(results.diverged(*cell) for cell in cells)
    samples: dict[Series, dict[int, float]] = {
        series: {} if diverged else sample(results, claim.quantity, series, weights)
        for series, weights in contrast.items()
    }
    arms = [[*values.values()] for values in samples.values()]
    norms = [float(np.linalg.norm([*weights.values()])) for weights in contrast.values()]
    if len({(*values,) for values in samples.values()}) == 1:  # of the same seeds
        arms, norms = [np.sum(arms, axis=0)], [float(np.linalg.norm(norms))]
    sd = results.study.known_sd.get(claim.quantity)
    measured = estimate(arms, [sd * norm for norm in norms] if sd else None)
    seeds = {series.label: [*values] for series, values in samples.items()}
    return _Part(name, seeds, measured, max(moved, default=0.0))


def _moved(results: Results, series: Series, label: str) -> float:
    """How far excess moved at last, a mean over the seeds of a shape; infinite where it is not known of one of them."""
    measured, moved = (results.values(series, label, name) for name in (EXCESS, MOVED))
    if measured.keys() - moved.keys():
        return math.inf
    return float(np.mean([*moved.values()])) if moved else 0.0


def _judgement(results: Results, test: _Test, p_holm: float, level: float) -> Judgement:
    claim, shown, margin = test.claim, test.decides, results.study.margins[test.claim.quantity]
    verdict = _verdict(test, p_holm, margin)
    needed = ""
    if verdict == "undecided" and not math.isnan(test.p):
        needed = str(shown.estimate.seeds_needed(level / test.times) or f"more than {MOST_SEEDS:,}")
    numbers = (shown.estimate.effect, *shown.estimate.interval, test.p, p_holm)
    effect, low, high, p, corrected = (None if math.isnan(number) else float(number) for number in numbers)
    return Judgement(
        statement=claim.statement,
        series=" against ".join(series.label for series in claim.series),
        quantity=NUMBERS[claim.quantity] + (", trained minus untrained" if claim.quantity == EXCESS else ""),
        contrast=shown.name,
        verdict=verdict,
        effect=effect,
        low=low,
        high=high,
        p=p,
        p_holm=corrected,
        margin=margin,
        seeds=shown.seeds,
        seeds_needed=needed,
        evidence=in_words(results, claim, shown.seeds),
    )


def _verdict(test: _Test, p_holm: float, margin: float) -> Verdict:
    intervals = [part.estimate.interval for part in test.parts]
    alike = not math.isnan(test.p) and all(-margin <= low and high <= margin for low, high in intervals)
    if any(part.moved > (margin if alike else abs(part.estimate.effect)) for part in test.parts):
        return "not settled"
    if alike:
        return "no difference within the margin"
    if p_holm < LEVEL:
        return "holds" if test.decides.estimate.effect * test.claim.sign > 0 else "contradicted"
    return "undecided"
