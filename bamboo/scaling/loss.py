"""Loss against parameters and data: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2)."""

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from tqdm.auto import tqdm

from bamboo.errors import InputError

from .bootstrap import Array, Estimate, Indices, estimate, resample
from .runs import cells, near

PREDICTED = ("predicted", "low", "high", "error_percent")
CONSTANTS = ("E", "A", "B", "alpha", "beta")
EXPONENTS = (0.01, 3.0)  # between these a fitted exponent is looked for
FLOOR = -12.0  # log of the smallest share of the loss that a term may have
SHARES = np.log([(0.8, 0.1, 0.1), (0.3, 0.6, 0.1), (0.3, 0.1, 0.6)])
STARTS = np.array([(*shares, *exponents) for shares in SHARES for exponents in product((0.15, 0.5, 1.2), repeat=2)])
COARSE, KEPT = 0.05, 5


@dataclass(frozen=True, eq=False)
class LossFit:
    """The law of some runs. Where N and D are far from 1, A and B are known far less well than what they predict.

    Args:
        constants: (1 + resamples, 5) E, A, B, alpha, beta: of the runs, then of resampled runs.
        flops: compute over N x D, the median over the runs: 6 unless they say otherwise.
    """

    runs: pd.DataFrame
    constants: Array
    flops: float

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Each constant with its interval, by name: E, A, B, alpha, beta."""
        return {name: estimate(values) for name, values in zip(CONSTANTS, self.constants.T, strict=True)}

    @property
    def exponents(self) -> tuple[Estimate, Estimate]:
        """Exponents in compute of the best N, beta / (alpha + beta), and of the best D, alpha / (alpha + beta)."""
        alpha, beta = self.constants[:, 3], self.constants[:, 4]
        return estimate(beta / (alpha + beta)), estimate(alpha / (alpha + beta))

    @property
    def residuals(self) -> Array:
        """(runs,) log of the measured loss over the fitted one."""
        return np.asarray(np.log(self.runs["loss"] / self.loss(self.runs["parameters"], self.runs["data"])))

    def notes(self) -> list[str]:
        """What these runs do not determine, in words."""
        low, high = EXPONENTS
        at_end = [name for name in ("alpha", "beta") if not 1.01 * low < self.estimates[name].value < 0.99 * high]
        notes = [f"{name} lies at the end of its range: these runs do not determine it" for name in at_end]
        if self.constants[0, 0] < 1e-3 * self.runs["loss"].min():
            notes.append("E is next to nothing: the loss still falls as a power law at the largest runs")
        return notes

    def loss(self, parameters: Any, data: Any) -> Array:
        """The fitted loss at any N and D, which may be arrays."""
        return _law(self.constants[0], np.asarray(parameters, np.float64), np.asarray(data, np.float64))

    def predict(self, parameters: float, data: float) -> Estimate:
        """Loss at N and D, with the interval of the law (not of a single new run)."""
        return estimate(_law(self.constants.T, parameters, data))

    def optimum(self, compute: float) -> tuple[Estimate, Estimate]:
        """Best N and best D at a budget of compute in FLOPs (Hoffmann et al. 2022, equation 4)."""
        pairs = compute / self.flops
        _, a, b, alpha, beta = self.constants.T
        best = np.exp((np.log(alpha * a / beta / b) + beta * np.log(pairs)) / (alpha + beta))
        return estimate(best), estimate(pairs / best)


def _law(constants: Array, n: Any, d: Any) -> Array:
    e, a, b, alpha, beta = constants
    return np.asarray(e + np.exp(np.log(a) - alpha * np.log(n)) + np.exp(np.log(b) - beta * np.log(d)))


def fit_loss(runs: pd.DataFrame, resamples: int = 400, seed: int = 0, delta: float = 1e-3) -> LossFit:
    """Fit the law to runs, which should differ in N and D alone (see `tuned`).

    As in approach 3 of Hoffmann et al. 2022: the Huber loss of log L, a log-sum-exp, from many starts. Sizes are taken
    relative to their geometric mean, so that one grid serves all scales; all starts are first followed under a wide
    quadratic zone, then the best of them under `delta`. Intervals are percentiles over resampled runs.

    `delta` is where the Huber loss turns from quadratic to linear, in units of log L.

    Raises:
        InputError: for fewer than 6 runs, 3 different N or 3 different D.
    """
    sides = _check(runs)
    logs = np.log(runs[["parameters", "data", "loss"]].to_numpy())
    centre = logs.mean(0) * (1, 1, 0)
    points = logs - centre

    def enough(draw: Indices) -> bool:
        return len(set(draw)) >= len(CONSTANTS) and all(len(set(side[draw])) >= 3 for side in sides)

    ends: list[Array] = []
    best = STARTS + np.median(points[:, 2]) * np.array([1, 1, 1, 0, 0])
    for draw in tqdm(resample(len(runs), resamples, enough, seed), "bootstrap", unit=" fits", disable=None):
        solutions = _follow(points[draw], _follow(points[draw], best, max(delta, COARSE)), delta)
        best = best if ends else solutions  # resampled runs start where all runs end
        ends.append(solutions[0])
    e, a, b, alpha, beta = np.transpose(ends)
    constants = [np.exp(e), np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1]), alpha, beta]
    flops = float((runs["compute"] / runs["parameters"] / runs["data"]).median())
    return LossFit(runs, np.transpose(constants), flops)


def _check(runs: pd.DataFrame) -> list[Indices]:
    """(runs,) group of equal N and of equal D of each run."""
    needs = "L = E + A / N^alpha + B / D^beta needs at least"
    sides = {"numbers of parameters": near(runs["parameters"]), "amounts of data": near(runs["data"])}
    for what, groups in sides.items():
        if groups.nunique() < 3:
            raise InputError(f"{needs} 3 different {what}, got {groups.nunique()} among {len(runs)} runs")
    if len(runs) <= len(CONSTANTS):
        raise InputError(f"{needs} {len(CONSTANTS) + 1} runs for its {len(CONSTANTS)} constants, got {len(runs)}")
    return [groups.to_numpy() for groups in sides.values()]


def _follow(points: Array, starts: Array, delta: float) -> Array:
    """(kept, 5) the best ends of the paths from the starts, best first; paths that meet count once."""
    n, d, measured = points.T

    def residuals(theta: Array) -> Array:
        terms = np.full_like(n, theta[0]), theta[1] - theta[3] * n, theta[2] - theta[4] * d
        return np.asarray(np.logaddexp.reduce(terms) - measured)

    bounds = np.transpose([(measured.min() + FLOOR, measured.max() + 3)] * 3 + [EXPONENTS] * 2)
    options = {"bounds": bounds, "loss": "huber", "f_scale": delta, "ftol": 1e-11, "xtol": 1e-10}
    ends = [least_squares(residuals, np.clip(start, *bounds), **options) for start in starts]
    ordered = np.array([end.x for end in sorted(ends, key=lambda end: end.cost)])
    distinct = np.unique(ordered.round(1), axis=0, return_index=True)[1]
    return ordered[np.sort(distinct)[:KEPT]]


class Holdout(NamedTuple):
    """The largest runs, `held`, predicted by the law of the others, `fit`.

    Columns of `held` are `predicted`, `low` and `high` (the interval of the law), and `error_percent`, of which `error`
    is the mean absolute value. `reach` is the compute of the largest run over that of the largest fitted one.
    """

    fit: LossFit
    held: pd.DataFrame
    error: float
    reach: float


def holdout_error(runs: pd.DataFrame, largest: int = 1, resamples: int = 400, seed: int = 0) -> Holdout:
    """Fit the smaller runs and predict those of the `largest` pairs of N and D by compute; otherwise as `fit_loss`."""
    cell = cells(runs)
    out = cell.isin(runs["compute"].groupby(cell).max().nlargest(largest).index)
    try:
        fit = fit_loss(runs[~out], resamples, seed)
    except InputError as error:
        raise InputError(f"without the {largest} largest: {error}") from error
    held = runs[out].copy()
    held[[*PREDICTED[:3]]] = [fit.predict(n, d) for n, d in held[["parameters", "data"]].to_numpy()]
    held["error_percent"] = 100 * (held["predicted"] / held["loss"] - 1)
    reach = held["compute"].max() / fit.runs["compute"].max()
    return Holdout(fit, held, float(held["error_percent"].abs().mean()), float(reach))
