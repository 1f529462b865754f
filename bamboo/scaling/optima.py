"""The best batch size at each budget, the best learning rate at each batch size, and power laws through them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import gmean, theilslopes

from bamboo.errors import InputError

from .bootstrap import Array, Estimate, Indices, estimate, resample
from .runs import cells, near


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """y = prefactor x^exponent, fitted at `x`: `lines` are exponent and log prefactor, (1 + resamples, 2)."""

    x: Array
    lines: Array

    @property
    def exponent(self) -> Estimate:
        """The power of x."""
        return estimate(self.lines[:, 0])

    @property
    def prefactor(self) -> Estimate:
        """y at x = 1, which is often far from the points, so that its interval is wide."""
        return self.predict(1.0)

    def predict(self, x: float) -> Estimate:
        """y at some x, with the interval of the law (not of a single new measurement)."""
        return estimate(np.exp(self.lines[:, 1] + self.lines[:, 0] * np.log(x)))


def fit_power_law(
    x: Sequence[float] | Array, y: Sequence[float] | Array, resamples: int = 1000, seed: int = 0
) -> PowerLaw:
    """Fit a line through log x and log y: the median of the slopes between pairs of points (Theil 1950, Sen 1968).

    Raises `InputError` for fewer than 3 different x, or numbers that are not positive and finite.
    """
    points = np.array([x, y], dtype=np.float64)
    if not np.all(np.isfinite(points) & (points > 0)):
        raise InputError("a power law needs positive, finite numbers")
    across, up = np.log(points).round(9)  # values that differ by rounding alone are equal
    distinct = len(np.unique(across))
    if distinct < 3:
        raise InputError(f"a power law needs at least 3 different x, got {distinct}")

    def enough(draw: Indices) -> bool:
        return bool(np.ptp(across[draw]) > 0)

    draws = resample(len(up), resamples, enough, seed)
    with np.errstate(invalid="ignore"):  # of an interval that is not used
        return PowerLaw(points[0], np.array([theilslopes(up[i], across[i], method="joint")[:2] for i in draws]))


@dataclass(frozen=True, eq=False)
class Optima:
    """Best settings and the power law through them.

    Args:
        table: a row for each budget, rising: `at` (the budget: FLOPs, samples or batch size), `label` (in words),
            `losses` (dict from setting to lowest loss), `edge` (the lowest is that of the first or the last setting, so
            that the best may lie beyond), `parabola` (coefficients in log setting, highest first, through the lowest
            loss and its neighbours), `best` (setting at its lowest point, or the tried one at an edge), `loss` (there).
        law: through those that are not at an edge; none where they are too few.
        note: why there is no law, or how many budgets were left out of it.
    """

    table: pd.DataFrame
    law: PowerLaw | None
    note: str


def best_batch(runs: pd.DataFrame, at: Literal["compute", "data"], resamples: int = 1000, seed: int = 0) -> Optima:
    """The batch size with the lowest loss at each budget, and how it grows with the budget.

    At fixed data the model is fixed too, and each model and amount of data is a budget of its own. At fixed compute
    each batch size counts with the best model, data and learning rate that were tried, so all batch sizes should have
    been tried with the same ones. Seeds are averaged. Budgets with fewer than 3 batch sizes are left out.

    Raises `InputError` where no budget has 3 batch sizes.
    """
    runs = runs.dropna(subset="batch_size")
    budget, fixed = (near(runs["compute"]), at) if at == "compute" else (cells(runs), "parameters and data")
    needs = f"the best batch at fixed {at} needs 3 batch sizes at the same {fixed}"
    return _optima(runs.groupby(budget), "batch_size", at, needs, resamples, seed)


def learning_rate_law(runs: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> Optima:
    """The best learning rate at each batch size, and how it grows with it, at fixed parameters and data.

    The law has one exponent and, as the best learning rate also depends on parameters and data, a prefactor that is
    that of their middle: points of each pair of parameters and data are moved onto a common centre before the fit.

    Raises `InputError` where no batch size has 3 learning rates at the same parameters and data.
    """
    runs = runs.dropna(subset=["batch_size", "learning_rate"])
    budget = [cells(runs).rename("cell"), "batch_size"]
    needs = "the learning rate law needs 3 learning rates at the same batch size, parameters and data"
    return _optima(runs.groupby(budget), "learning_rate", "batch_size", needs, resamples, seed)


def _optima(budgets: Any, setting: str, at: str, needs: str, resamples: int, seed: int) -> Optima:
    rows = {key: _optimum(runs, setting, at) for key, runs in budgets if runs[setting].nunique() >= 3}
    if not rows:
        raise InputError(needs)
    table = pd.DataFrame(rows).T
    inside = table.loc[~table["edge"].astype(bool), ["at", "best"]].astype(np.float64)
    out = len(table) - len(inside)
    note = f"{out} of {len(table)} budgets left out: the lowest loss is at the edge of what was tried" if out else ""
    table = table.sort_values("at", ignore_index=True)
    try:
        x, y = (_centred(inside) if at == "batch_size" else inside).to_numpy().T
        return Optima(table, fit_power_law(x, y, resamples, seed), note)
    except InputError as error:
        return Optima(table, None, "; ".join(filter(None, [str(error), note])))


def _optimum(runs: pd.DataFrame, setting: str, at: str) -> pd.Series:
    """Of the runs of a budget: seeds are averaged, then the best of what else differs is taken."""
    alike = [*dict.fromkeys((setting, "parameters", "batch_size", "learning_rate"))]
    losses = runs.groupby(alike, dropna=False)["loss"].agg(gmean).groupby(level=setting).min()
    budget, size, data = (float(gmean(runs[column])) for column in (at, "parameters", "data"))
    label = f"{budget:.2g} FLOPs" if at == "compute" else f"N {size:.2g}, D {data:.2g}"
    lowest, parabola, best, loss = int(losses.argmin()), None, losses.idxmin(), losses.min()
    edge = lowest in (0, len(losses) - 1)
    if not edge:
        three = losses.iloc[lowest - 1 : lowest + 2]
        parabola = np.polyfit(np.log(three.index), three, 2)
        vertex = -parabola[1] / (2 * parabola[0])
        best, loss = np.exp(vertex), np.polyval(parabola, vertex)
    row = {"at": budget, "label": label, "losses": losses.to_dict(), "edge": edge, "parabola": parabola}
    return pd.Series({**row, "best": best, "loss": loss})


def _centred(points: pd.DataFrame) -> pd.DataFrame:
    """Points over the geometric mean of their cell, times that of the cells; a cell of one point has no slope."""
    logs = np.log(points)
    logs = logs[logs.groupby(level=0)["at"].transform("size") > 1]
    return np.exp(logs - logs.groupby(level=0).transform("mean") + logs.groupby(level=0).mean().mean())
