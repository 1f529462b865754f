"""The claims of the paper: a table of contrasts between the cells of a study."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .results import Results, Series
from .spec import UNSUPERVISED

Weights = Mapping[str, float]
Contrast = Mapping[Series, Weights]
"""The weight of each shape, by its label, of each series."""

EXCESS, ACCURACY = "excess", "accuracy"
GUESSED = {"masked": "masked_accuracy", "causal": "next_accuracy"}
"""What an objective is judged by where no fine-tuning follows."""
DOUBLING = "per doubling of depth"
LONGEST, BEYOND = "loss_longest", "loss_beyond"


@dataclass(frozen=True)
class Claim:
    """A statement about the cells of a study.

    Args:
        quantity: the number that it is about; of `excess` it is what training adds.
        contrasts: by what they are called; all must lie on the claimed side of zero, above or, if `sign` is -1, below.
    """

    statement: str
    quantity: str
    contrasts: Mapping[str, Contrast]
    sign: int = 1

    @property
    def series(self) -> list[Series]:
        """The series that it is about."""
        return list(next(iter(self.contrasts.values())))


def claims(results: Results) -> list[Claim]:
    """Every claim that the objectives, shapes and numbers of a study can be asked about."""
    smoothing, scores = results.has(EXCESS), bool(slope(results))
    return [
        *(_smoothing(results) if smoothing else ()),
        *(_scores(results) if scores else ()),
        *(_lengths(results) if results.has(LONGEST) else ()),
    ]


def _smoothing(results: Results) -> Iterator[Claim]:
    trend = slope(results)
    for each in _of_kind(results, "supervised") if trend else ():
        yield Claim("supervision smooths more, the deeper the network", EXCESS, {DOUBLING: {each: trend}})
    for one, other in _pairs(results):
        apart = {f"at {label}": {other: {label: 1.0}, one: {label: -1.0}} for label in results.study.shapes}
        yield Claim(f"{one.objective} smooths less than supervision at every depth", EXCESS, apart)
        if trend:
            gap = {DOUBLING: {other: trend, one: _negative(trend)}}
            yield Claim(f"{one.objective}'s smoothing rises less with depth than supervision's", EXCESS, gap)


def _scores(results: Results) -> Iterator[Claim]:
    trend, shapes = slope(results), results.study.shapes
    shallow, deep = (end(shapes, key=lambda label: shapes[label].depth) for end in (min, max))
    for one, other in _pairs(results):
        if _score(results, one) == _score(results, other) == ACCURACY:
            gap = {DOUBLING: {one: trend, other: _negative(trend)}}
            yield Claim(f"depth does more for accuracy under {one.objective} than under supervision", ACCURACY, gap)
    for each in _of_kind(results, *UNSUPERVISED):
        if score := _score(results, each):
            statement = f"deep and narrow ({deep}) beats the conventional shape ({shallow}) under {each.objective}"
            yield Claim(statement, score, {f"{deep} minus {shallow}": {each: {deep: 1.0, shallow: -1.0}}})
    for each in _of_kind(results, "supervised"):
        if score := _score(results, each):
            statement = "deeper and narrower is worse under supervision"
            yield Claim(statement, score, {DOUBLING: {each: trend}}, sign=-1)


def _lengths(results: Results) -> Iterator[Claim]:
    """Of causal models at lengths beyond that of training: whether positions are needed, and whether adapting helps."""
    kinds = {series: _positions(results, series) for series in _of_kind(results, "causal")}
    labels = list(results.study.shapes)
    for each in (series for series, kind in kinds.items() if kind == ("none", "none")):
        beyond = {f"at {label}": {each: {label: 1.0}} for label in labels}
        yield Claim("without positions loss rises beyond the length of training", BEYOND, beyond)
    for adaptive in ("dape", "dape_v2"):
        better: dict[str, Contrast] = {
            f"{positions} at {label}": {static: {label: 1.0}, adapted: {label: -1.0}}
            for adapted, (positions, how) in kinds.items()
            for static, kind in kinds.items()
            for label in labels
            if how == adaptive and kind == (positions, "none")
        }
        if better:
            yield Claim(f"{adaptive} extrapolates better than static positions of every kind", LONGEST, better)


def _positions(results: Results, series: Series) -> tuple[str, str]:
    """The kind of positions of a causal series, and how they adapt."""
    settings = results.study.objectives[series.objective].config["model"]["init_args"]
    settings = {**settings, **{name.split(".")[-1]: value for name, value in series.axes}}
    return settings.get("positions", "learned"), settings.get("adaptive", "none")


def slope(results: Results) -> Weights:
    """What the least-squares slope over log2(depth) weighs each shape by; empty where all shapes have one depth."""
    depths = np.log2([shape.depth for shape in results.study.shapes.values()])
    off = depths - depths.mean()
    return dict(zip(results.study.shapes, (off / (off @ off)).tolist(), strict=True)) if np.ptp(depths) else {}


def _negative(weights: Weights) -> Weights:
    return {label: -weight for label, weight in weights.items()}


def _of_kind(results: Results, *kinds: str) -> list[Series]:
    return [series for series in results.series if series.kind in kinds]


def _pairs(results: Results) -> list[tuple[Series, Series]]:
    """Series of masked or causal training, and supervised ones whose common axes are at the same values."""
    unsupervised, supervised = _of_kind(results, *UNSUPERVISED), _of_kind(results, "supervised")
    return [(one, other) for one in unsupervised for other in supervised if _agree(one, other)]


def _agree(first: Series, second: Series) -> bool:
    left, right = dict(first.axes), dict(second.axes)
    return all(left[name] == right[name] for name in left.keys() & right.keys())


def _score(results: Results, series: Series) -> str:
    """What a series is judged by: accuracy, or tokens guessed right where no fine-tuning follows; or nothing."""
    name = ACCURACY if results.study.objectives[series.objective].then else GUESSED.get(series.kind, ACCURACY)
    return name if results.has(name) else ""


def not_asked(results: Results) -> list[str]:
    """Why there are fewer claims than there might be."""
    lines = []
    if results.done and not results.has(EXCESS):
        lines.append("nothing is said of smoothing: no cell has excess similarity, which earlier versions left out")
    if not slope(results):
        lines.append("nothing is said of depth: all shapes have the same")
    return lines
