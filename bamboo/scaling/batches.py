"""The best batch size at each budget, the best learning rate at each batch size, and power laws through them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bamboo.errors import InputError

from .estimates import Array
from .power_laws import PowerLaw, fit_power_law
from .runs import TOLERANCE, Run, by_cell, close, group, mean_loss

LEAST = 3


@dataclass(frozen=True)
class Optimum:
    """Where the loss is lowest among settings that differ in one number.

    Args:
        at: what is held fixed, as a number: FLOPs, samples, or batch size.
        best: the setting with the lowest loss, between the tried ones.
        loss: there.
        edge: whether the lowest loss is that of the first or the last setting, so that the best may lie beyond.
        settings: that were tried, rising.
        losses: the best of each.
        label: what is held fixed, in words.
        cell: N and D where both are held fixed; those that differ are not compared.
    """

    at: float
    best: float
    loss: float
    edge: bool
    settings: tuple[float, ...]
    losses: tuple[float, ...]
    label: str
    cell: tuple[float, float] | None = None

    def parabola(self) -> tuple[float, float, float] | None:
        """Coefficients in log setting, highest first, of the parabola of the loss; none at an edge."""
        if self.edge:
            return None
        lowest = int(np.argmin(self.losses))
        three = slice(lowest - 1, lowest + 2)
        bend, tilt, level = np.polyfit(np.log(self.settings[three]), self.losses[three], 2)
        return float(bend), float(tilt), float(level)


@dataclass(frozen=True, eq=False)
class BatchLaw:
    """Best settings and the power law through them.

    Args:
        optima: one for each budget, rising.
        law: through those that are not at an edge; none where they are too few.
        note: why there is no law, or how many budgets were left out of it.
    """

    optima: tuple[Optimum, ...]
    law: PowerLaw | None
    note: str


def best_batch(
    runs: Sequence[Run],
    at: Literal["compute", "data"],
    resamples: int = 1000,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> BatchLaw:
    """The batch size with the lowest loss at each budget, and how it grows with the budget.

    At fixed data the model is fixed too, and each model and amount of data is a budget of its own. At fixed compute
    each batch size counts with the best model, data and learning rate that were tried, so all batch sizes should have
    been tried with the same ones. Seeds are averaged. The best lies at the lowest point of the parabola, in log batch
    size, through the lowest loss and its two neighbours. Budgets with fewer than 3 batch sizes are left out.

    Args:
        runs: that differ in batch size, and best in learning rate too.
        at: what a budget fixes: `compute`, or `data`.
        resamples: of the bootstrap over budgets.
        seed: of the bootstrap.
        tolerance: budgets that differ by no more are the same.

    Raises:
        InputError: where no budget has 3 batch sizes.
    """
    known = [run for run in runs if run.batch_size is not None]
    cells = close(known, lambda run: run.compute, tolerance) if at == "compute" else by_cell(known, tolerance)
    optima = []
    for cell in cells:
        budget = _middle([getattr(run, at) for run in cell])
        size, data = cell[0].parameters, _middle([run.data for run in cell])
        label = f"{budget:.2g} FLOPs" if at == "compute" else f"N {size:.2g}, D {data:.2g}"
        found = _optimum(cell, lambda run: run.batch_size, budget, label, None if at == "compute" else (size, data))
        optima += [found] if found else []
    if not optima:
        fixed = "compute" if at == "compute" else "parameters and data"
        raise InputError(f"the best batch at fixed {at} needs 3 batch sizes at the same {fixed}")
    optima.sort(key=lambda optimum: optimum.at)
    return _law(optima, "budgets", resamples, seed)


def learning_rate_law(
    runs: Sequence[Run], resamples: int = 1000, seed: int = 0, tolerance: float = TOLERANCE
) -> BatchLaw:
    """The best learning rate at each batch size, and how it grows with it, at fixed parameters and data.

    The best is found as in `best_batch`, in log learning rate. The law has one exponent and, as the best learning rate
    also depends on parameters and data, a prefactor that is that of their middle: points of each pair of parameters and
    data are moved onto a common centre before the fit.

    Args:
        runs: that differ in batch size and learning rate.
        resamples: of the bootstrap over points.
        seed: of the bootstrap.
        tolerance: amounts of data that differ by no more are the same.

    Raises:
        InputError: where no batch size has 3 learning rates at the same parameters and data.
    """
    known = [run for run in runs if run.batch_size is not None and run.learning_rate is not None]
    optima = []
    for cell in by_cell(known, tolerance):
        pair = (cell[0].parameters, _middle([run.data for run in cell]))
        batches = group(sorted(cell, key=lambda run: run.batch_size or 0), lambda run: run.batch_size)
        for batch, same in batches.items():
            label = f"N {pair[0]:.2g}, D {pair[1]:.2g}"
            found = _optimum(same, lambda run: run.learning_rate, batch, label, pair)
            optima += [found] if found else []
    if not optima:
        raise InputError("the learning rate law needs 3 learning rates at the same batch size, parameters and data")
    return _law(optima, "points", resamples, seed, centred=True)


def _optimum(
    runs: Sequence[Run],
    setting: Callable[[Run], float | None],
    at: float,
    label: str,
    cell: tuple[float, float] | None,
) -> Optimum | None:
    losses = {}
    for value, same in group(runs, setting).items():
        alike = group(same, lambda run: (run.parameters, run.batch_size, run.learning_rate))
        losses[value] = min(map(mean_loss, alike.values()))
    if len(losses) < LEAST:
        return None
    settings = tuple(sorted(losses))
    found = tuple(losses[value] for value in settings)
    lowest = int(np.argmin(found))
    edge = lowest in (0, len(found) - 1)
    optimum = Optimum(at, settings[lowest], found[lowest], edge, settings, found, label, cell)
    curve = optimum.parabola()
    if curve is None:
        return optimum
    bend, tilt, level = curve
    best, loss = math.exp(-tilt / (2 * bend)), level - tilt**2 / (4 * bend)
    return Optimum(at, best, loss, edge, settings, found, label, cell)


def _law(optima: list[Optimum], what: str, resamples: int, seed: int, centred: bool = False) -> BatchLaw:
    inside = [optimum for optimum in optima if not optimum.edge]
    out = len(optima) - len(inside)
    note = f"{out} of {len(optima)} {what} left out: the lowest loss is at the edge of what was tried" if out else ""
    points = np.array([(optimum.at, optimum.best) for optimum in inside]).reshape(-1, 2)
    if centred:
        points = _centred(points, [optimum.cell for optimum in inside])
    try:
        return BatchLaw(tuple(optima), fit_power_law(points[:, 0], points[:, 1], resamples, seed), note)
    except InputError as error:
        return BatchLaw(tuple(optima), None, "; ".join(filter(None, [str(error), note])))


def _centred(points: Array, cells: Sequence[object]) -> Array:
    """Points over the geometric mean of their cell, times that of the cells; a cell of one point has no slope."""
    logs = np.log(points)
    groups = [[i for i, other in enumerate(cells) if other == cell] for cell in dict.fromkeys(cells)]
    groups = [members for members in groups if len(members) > 1]
    means = [logs[members].mean(0) for members in groups]
    moved = [logs[members] - mean + np.mean(means, 0) for members, mean in zip(groups, means, strict=True)]
    return np.exp(np.concatenate(moved)) if moved else np.empty((0, 2))


def _middle(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))
