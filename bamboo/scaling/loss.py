"""Loss against parameters and data: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from bamboo.errors import InputError

from .estimates import Array, Estimate, Indices, estimate, resample
from .runs import TOLERANCE, Run

CONSTANTS = ("E", "A", "B", "alpha", "beta")
EXPONENTS = (0.01, 3.0)  # between these a fitted exponent is looked for
FLOOR = -12.0  # log of the smallest share of the loss that a term may have
STARTS = tuple(
    (*shares, alpha, beta)
    for alpha, beta in product((0.1, 0.3, 0.6, 1.0, 1.5), repeat=2)
    for shares in ((0.8, 0.1, 0.1), (0.4, 0.3, 0.3), (0.1, 0.45, 0.45), (0.3, 0.6, 0.1), (0.3, 0.1, 0.6))
)
COARSE, KEPT = 0.05, 5


@dataclass(frozen=True, eq=False)
class LossFit:
    """The fitted law. Where N and D are far from 1, A and B are known far less well than what they predict.

    Args:
        runs: that were fitted.
        constants: (5,) E, A, B, alpha, beta.
        draws: (resamples, 5) the same of resampled runs.
        flops: compute over N x D, the median over the runs: 6 unless they say otherwise.
    """

    runs: tuple[Run, ...]
    constants: Array
    draws: Array
    flops: float

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Each constant with its interval, by name: E, A, B, alpha, beta."""
        columns = zip(CONSTANTS, self.constants, self.draws.T, strict=True)
        return {name: estimate(value, draws) for name, value, draws in columns}

    @cached_property
    def exponents(self) -> tuple[Estimate, Estimate]:
        """Exponents in compute of the best N, beta / (alpha + beta), and of the best D, alpha / (alpha + beta)."""
        share, drawn = (c[..., 4] / (c[..., 3] + c[..., 4]) for c in (self.constants, self.draws))
        return estimate(float(share), drawn), estimate(1 - float(share), 1 - drawn)

    @cached_property
    def residuals(self) -> Array:
        """(runs,) log of the measured loss over the fitted one."""
        return np.array([np.log(run.loss / self.predict(run.parameters, run.data).value) for run in self.runs])

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What these runs do not determine, in words."""
        at_end = [name for name in CONSTANTS[3:] if _at_end(self.estimates[name].value)]
        notes = [f"{name} lies at the end of its range: these runs do not determine it" for name in at_end]
        if self.constants[0] < 1e-3 * min(run.loss for run in self.runs):
            notes.append("E is next to nothing: the loss still falls as a power law at the largest runs")
        return tuple(notes)

    def loss(self, parameters: Any, data: Any) -> Array:
        """The fitted loss at any N and D, which may be arrays."""
        return _law(self.constants, np.asarray(parameters, dtype=np.float64), np.asarray(data, dtype=np.float64))

    def predict(self, parameters: float, data: float) -> Estimate:
        """Loss at N and D, with the interval of the law (not of a single new run)."""
        drawn = _law(self.draws.T[..., None], np.float64(parameters), np.float64(data))
        return estimate(float(self.loss(parameters, data)), drawn)

    def optimum(self, compute: float) -> tuple[Estimate, Estimate]:
        """Best N and best D at a budget of compute in FLOPs (Hoffmann et al. 2022, equation 4)."""
        pairs = compute / self.flops
        best, drawn = (_best_size(constants, pairs) for constants in (self.constants, self.draws.T))
        return estimate(float(best), drawn), estimate(float(pairs / best), pairs / drawn)


def _law(constants: Array, n: Any, d: Any) -> Array:
    e, a, b, alpha, beta = constants
    return np.asarray(e + np.exp(np.log(a) - alpha * np.log(n)) + np.exp(np.log(b) - beta * np.log(d)))


def _best_size(constants: Array, pairs: float) -> Array:
    """N that minimises the loss at a given N x D."""
    _, a, b, alpha, beta = constants
    log_best = (np.log(alpha) + np.log(a) - np.log(beta) - np.log(b) + beta * np.log(pairs)) / (alpha + beta)
    return np.asarray(np.exp(log_best))


def _at_end(exponent: float) -> bool:
    low, high = EXPONENTS
    return exponent < 1.01 * low or exponent > 0.99 * high


def fit_loss(
    runs: Sequence[Run], resamples: int = 400, seed: int = 0, delta: float = 1e-3, progress: bool = False
) -> LossFit:
    """Fit the law to runs, which should differ in N and D alone (see `tuned`).

    As in approach 3 of Hoffmann et al. 2022: the Huber loss of log L, by L-BFGS from a grid of starts. Sizes are taken
    relative to their geometric mean, so that one grid serves all scales; all starts are first followed under a wide
    quadratic zone, then the best of them under `delta`. Intervals are percentiles over resampled runs.

    Args:
        runs: at least 6, with at least 3 different N and 3 different D.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        delta: where the Huber loss turns from quadratic to linear, in units of log L.
        progress: show a progress bar.

    Raises:
        InputError: for too few runs, sizes or amounts of data, saying what is needed.
    """
    runs = tuple(runs)
    logs = np.log([(run.parameters, run.data, run.loss) for run in runs] or np.empty((0, 3)))
    _check(logs)
    centre = logs.mean(0) * (1, 1, 0)
    points = logs - centre
    best = _minimise(points, _starts(points), delta)

    def enough(draw: Indices) -> bool:
        return len(set(draw)) >= len(CONSTANTS) and all(_distinct(logs[draw, side]) >= 3 for side in (0, 1))

    draws = [
        _minimise(points[draw], best, delta)[0]
        for draw in tqdm(
            resample(len(runs), resamples, enough, seed), "bootstrap", resamples, unit=" fits", disable=not progress
        )
    ]
    flops = float(np.median([run.compute / run.parameters / run.data for run in runs]))
    return LossFit(runs, _constants(best[0], centre), _constants(np.array(draws), centre), flops)


def _check(logs: Array) -> None:
    needs = "L = E + A / N^alpha + B / D^beta needs at least"
    for side, what in enumerate(("numbers of parameters", "amounts of data")):
        if _distinct(logs[:, side]) < 3:
            raise InputError(f"{needs} 3 different {what}, got {_distinct(logs[:, side])} among {len(logs)} runs")
    if len(logs) <= len(CONSTANTS):
        raise InputError(f"{needs} {len(CONSTANTS) + 1} runs for its {len(CONSTANTS)} constants, got {len(logs)}")


def _distinct(logs: Array) -> int:
    """How many values are more than a tolerance apart."""
    return min(len(logs), 1 + int((np.diff(np.sort(logs)) > np.log1p(TOLERANCE)).sum()))


def _starts(points: Array) -> Array:
    """(starts, 5) logs of the three terms at the centre of the runs, and the exponents."""
    starts = np.array(STARTS)
    starts[:, :3] = np.log(starts[:, :3]) + np.median(points[:, 2])
    return starts


def _minimise(points: Array, starts: Array, delta: float) -> Array:
    """(kept, 5) the best ends of the paths from the starts, best first; paths that meet count once."""
    coarse = _apart(_follow(points, starts, max(delta, COARSE))[: 4 * KEPT])
    return _apart(_follow(points, coarse[:KEPT], delta))


def _apart(ends: Array) -> Array:
    near = [any(np.allclose(end, other, rtol=1e-2, atol=1e-2) for other in ends[:i]) for i, end in enumerate(ends)]
    return np.array([end for end, known in zip(ends, near, strict=True) if not known])


def _follow(points: Array, starts: Array, delta: float) -> Array:
    from scipy.optimize import minimize  # a third of a second

    low, high = points[:, 2].min(), points[:, 2].max()
    bounds = [(low + FLOOR, high + 3)] * 3 + [EXPONENTS] * 2
    ends = [
        minimize(
            _objective,
            start,
            (points, delta),
            "L-BFGS-B",
            jac=True,
            bounds=bounds,
            options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-8},
        )
        for start in starts
    ]
    return np.array([end.x for end in sorted(ends, key=lambda end: end.fun)])


def _objective(theta: Array, points: Array, delta: float) -> tuple[float, Array]:
    """Mean Huber loss of log L over `delta`, and its gradient; log L is a log-sum-exp (Hoffmann et al. 2022)."""
    n, d, measured = points.T
    terms = np.stack([np.full_like(n, theta[0]), theta[1] - theta[3] * n, theta[2] - theta[4] * d])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    residual = top + np.log(total) - measured
    clipped = residual.clip(-delta, delta)
    value = (clipped * (residual - clipped / 2)).mean() / delta
    pull = clipped / (delta * len(n)) * shares / total
    return float(value), np.array([*pull.sum(1), -pull[1] @ n, -pull[2] @ d])


def _constants(theta: Array, centre: Array) -> Array:
    """E, A, B, alpha, beta in the units of the runs."""
    e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    return np.stack([np.exp(e), np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1]), alpha, beta], axis=-1)


@dataclass(frozen=True, eq=False)
class Holdout:
    """The largest runs, predicted from the others.

    Args:
        fit: of the other runs.
        held: the largest runs.
        predicted: loss of each of them.
        errors: (held,) predicted over measured, less one, in percent.
    """

    fit: LossFit
    held: tuple[Run, ...]
    predicted: tuple[Estimate, ...]
    errors: Array

    @property
    def error(self) -> float:
        """Mean of the absolute errors, in percent."""
        return float(np.abs(self.errors).mean())

    @property
    def reach(self) -> float:
        """Compute of the largest run over that of the largest fitted one."""
        return max(run.compute for run in self.held) / max(run.compute for run in self.fit.runs)


def holdout_error(
    runs: Sequence[Run],
    largest: int = 1,
    fraction: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    delta: float = 1e-3,
    progress: bool = False,
) -> Holdout:
    """Fit the smaller runs and predict the largest ones by compute; runs of the same N and D stay together.

    Args:
        runs: as `fit_loss` takes them.
        largest: how many pairs of N and D to hold out.
        fraction: share of the pairs to hold out instead, at least one.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        delta: of the Huber loss.
        progress: show a progress bar.

    Raises:
        InputError: where too little is left to fit.
    """
    if largest < 1 or not (fraction is None or 0 < fraction < 1):
        raise InputError(f"hold out at least one run, or a fraction between 0 and 1: got {largest}, {fraction}")
    pairs = {(run.parameters, run.data): run.compute for run in runs}
    order = sorted(pairs, key=lambda pair: pairs[pair])
    count = largest if fraction is None else max(1, round(fraction * len(order)))
    out = set(order[-count:])
    try:
        kept = [run for run in runs if (run.parameters, run.data) not in out]
        fit = fit_loss(kept, resamples, seed, delta, progress)
    except InputError as error:
        raise InputError(f"without the {count} largest: {error}") from error
    held = tuple(run for run in runs if (run.parameters, run.data) in out)
    predicted = tuple(fit.predict(run.parameters, run.data) for run in held)
    errors = [100 * (guess.value / run.loss - 1) for guess, run in zip(predicted, held, strict=True)]
    return Holdout(fit, held, predicted, np.array(errors))
