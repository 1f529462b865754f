"""Figures with depth across: a number of all cells against the depth of their shapes, at equal parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bamboo.analysis.plots import style

from .claims import interval
from .look import colour, label_ends, legend, mark, words
from .results import NUMBERS, SHARES, Outcome, Results, Series

APART = 0.03
"""How far objectives are moved apart sideways, as a share of depth, so that their intervals do not hide one another."""


def plot_against_depth(results: Results, name: str, before: str | None = None) -> Figure:
    """A number, one line for each objective, labelled at its end; `before` is the same of untrained models, dashed."""
    with style():
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        axis = figure.subplots()
        ends = _lines(axis, results, name, before)
        axis.set_ylabel(NUMBERS[name])
        label_ends(axis, results, ends)
    return figure


def plot_row(results: Results, names: Sequence[str]) -> Figure:
    """Several numbers, side by side."""
    with style():
        figure = Figure(figsize=(0.5 + 2.9 * max(len(names), 2), 3.2), layout="constrained")
        for axis, name in zip(figure.subplots(1, max(len(names), 2), squeeze=False)[0], names, strict=False):
            _lines(axis, results, name)
            axis.set_title(NUMBERS[name])
        for axis in figure.axes[len(names) :]:
            axis.axis("off")
        legend(figure, results)
    return figure


def plot_cost(results: Results) -> Figure:
    """Time and memory of a step."""
    with style():
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axis, value in ((left, _milliseconds), (right, _megabytes)):
            _medians(axis, results, value)
            _depth_axis(axis, results)
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        left.set(title="time of a step", ylabel="milliseconds")
        right.set(title="kept for the backward pass", ylabel="megabytes")
        legend(figure, results)
    return figure


def _lines(axis: Any, results: Results, name: str, before: str | None = None) -> list[tuple[float, Series]]:
    """Draw every objective; the heights at which the lines end."""
    ends, seen = [], []
    for place, series in enumerate(results.series):
        tint, points = colour(results, series), _points(results, series, name)
        start = _points(results, series, before) if before else []
        axis.plot([depth for depth, _ in start], [np.mean(y) for _, y in start], "--", color=tint, alpha=0.7)
        seen += [value for _, values in (*points, *start) for value in values]
        if points:
            ends.append((_line(axis, points, tint, mark(results, series), 1 + APART * place), series))
    _depth_axis(axis, results)
    if seen:
        _limits(axis, name, min(seen), max(seen))
    return ends


def _limits(axis: Any, name: str, low: float, high: float) -> None:
    """Room for what was measured; an interval that is far wider, as of two seeds, runs out of the picture."""
    if name in SHARES:
        axis.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g} %")
    if name == "similarity":
        axis.set_ylim(min(low, 0), 1.02)
        return
    room = 0.6 * (high - low) or 0.1
    bottom, top = axis.get_ylim()
    ceiling = 1.02 if name in SHARES else math.inf
    axis.set_ylim(max(bottom, low - room), min(top, high + room, ceiling))


def _points(results: Results, series: Series, name: str) -> list[tuple[int, list[float]]]:
    """Depth and values over seeds, for the shapes of which any cell is finished."""
    shapes = results.study.shapes.items()
    found = ((shape.depth, [*results.values(series, label, name).values()]) for label, shape in shapes)
    return sorted((depth, values) for depth, values in found if values)


def _line(axis: Any, points: Sequence[tuple[int, list[float]]], tint: str, shape: str, shift: float) -> float:
    """Dots, means and their intervals; the height of the last mean."""
    x, means = [depth * shift for depth, _ in points], [interval(values) for _, values in points]
    axis.plot(x, [mean for mean, _, _ in means], color=tint)
    for place, (mean, low, high), (_, values) in zip(x, means, points, strict=True):
        if np.isfinite(low):
            axis.errorbar([place], [mean], [[mean - low], [high - mean]], color=tint, capsize=3, linewidth=1)
        axis.plot([place] * len(values), values, shape, color=tint, markersize=3.5, alpha=0.6, markeredgewidth=0)
    return means[-1][0]


def _medians(axis: Any, results: Results, value: Callable[[Outcome], float]) -> None:
    for place, series in enumerate(results.series):
        tint, shift = colour(results, series), 1 + APART * place
        points = [(one.cell.shape.depth, value(one)) for one in results.of(series)]
        depths = sorted({depth for depth, _ in points})
        middle = [float(np.median([y for x, y in points if x == depth])) for depth in depths]
        axis.plot([depth * shift for depth in depths], middle, color=tint)
        look = {"color": tint, "markersize": 3.5, "alpha": 0.6, "markeredgewidth": 0}
        axis.plot([x * shift for x, _ in points], [y for _, y in points], mark(results, series), **look)


def _depth_axis(axis: Any, results: Results) -> None:
    shapes = results.study.shapes
    axis.set_xscale("log", base=2)
    axis.set_xticks([shape.depth for shape in shapes.values()], [words(results, label) for label in shapes])
    axis.minorticks_off()
    axis.set_xlabel("depth × width, at equal parameters")


def _milliseconds(one: Outcome) -> float:
    return 1000 * one.cost.get("step_seconds", math.nan)


def _megabytes(one: Outcome) -> float:
    return one.numbers["activation_bytes"] / 1e6
