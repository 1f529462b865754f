"""Figures of numbers: against the depth of the shapes, layer by layer, and along training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from bamboo.analysis.plots import COLOURS, MARKS, style
from bamboo.intervals import interval

from .courses import Course
from .results import NUMBERS, SHARES, Results, Series

APART = 0.03
"""How far objectives are moved apart sideways, as a share of depth, so that their intervals do not hide one another."""
SCALED = {"step_seconds": (1e3, "milliseconds of a step"), "activation_bytes": (1e-6, "MB kept for the backward pass")}
"""Costs of a step: the factor that they are shown with, and their unit."""
ALONG = {"steps": "optimizer steps", "loss": "training loss", "flops": "training FLOPs"}
PERCENT = FuncFormatter(lambda value, _: f"{round(100 * value, 1):g} %")


def plot_numbers(results: Results, names: Sequence[str]) -> Figure:
    """Numbers (or costs of `SCALED`) against depth, a panel each: dots are seeds, lines their means.

    Bars are 95 % intervals of the mean. Dashed is the same number of untrained models, where there is one.
    """
    columns, rows = min(len(names), 3), math.ceil(len(names) / 3)
    with style():
        figure = Figure(figsize=(0.8 + 3.1 * max(columns, 1.6), 0.6 + 2.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(names) :]:
            axis.remove()
        for axis, name in zip(axes, names, strict=False):
            shown: list[float] = []
            for place, series in enumerate(results.series):
                shown += _draw_means(axis, results, series, f"{name}_untrained", 1, "--")
                shown += _draw_means(axis, results, series, name, 1 + APART * place, "-")
            _depth_axis(axis, results)
            _limits(axis, name, shown)
            axis.set_title(SCALED[name][1] if name in SCALED else NUMBERS[name])
        _legend(figure, results)
    return figure


def _draw_means(axis: Any, results: Results, series: Series, name: str, shift: float, dash: str) -> list[float]:
    """A line through the means of the shapes and, if it is solid, dots and intervals; all values."""
    factor, colour, mark = SCALED.get(name, (1.0, ""))[0], _colour(results, series), _mark(results, series)
    by_shape = (
        (shape.depth * shift, [factor * value for value in results.values(series, label, name).values()])
        for label, shape in results.study.shapes.items()
    )
    points = sorted((x, values) for x, values in by_shape if values)
    if not points:
        return []
    axis.plot(
        [x for x, _ in points], [np.mean(y) for _, y in points], dash, color=colour, alpha=0.7 + 0.3 * (dash == "-")
    )
    for x, values in points if dash == "-" else ():
        mean, low, high = interval(values)
        if np.isfinite(low):
            axis.errorbar([x], [mean], [[mean - low], [high - mean]], color=colour, capsize=3, linewidth=1)
        axis.plot([x] * len(values), values, mark, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
    return [value for _, values in points for value in values]


def _limits(axis: Any, name: str, shown: Sequence[float]) -> None:
    """Room for what was measured; an interval that is far wider, as of two seeds, runs out of the picture."""
    if name in SHARES:
        axis.yaxis.set_major_formatter(PERCENT)
    if not shown:
        return
    low, high = min(shown), max(shown)
    if name.startswith(("similarity", "excess")):
        axis.set_ylim(min(low, 0), 1.02)
    elif name in SCALED:
        axis.set_ylim(0, 1.15 * high)
    else:
        room, (bottom, top) = 0.6 * (high - low) or 0.1, axis.get_ylim()
        axis.set_ylim(max(bottom, low - room), min(top, high + room, 1.02 if name in SHARES else math.inf))


def _depth_axis(axis: Any, results: Results) -> None:
    shapes = results.study.shapes
    axis.set_xscale("log", base=2)
    axis.set_xticks([shape.depth for shape in shapes.values()], [_title(results, label) for label in shapes])
    axis.minorticks_off()
    axis.set_xlabel("depth × width, at equal parameters")


def plot_layers(results: Results, rows: Mapping[str, Mapping[str, str]]) -> Figure:
    """Measures by relative depth, a row of panels each, a panel for each shape: means over seeds, and bands of all.

    Args:
        results: of a study.
        rows: measures or probes; of each the labels of profiles, and the style of their lines; solid ones have bands.
    """
    drawn: dict[str, str] = {}
    with style():
        figure, panels = _panels(results, "relative depth", [name.replace("_", " ") for name in rows])
        for (measure, dashes), line in zip(rows.items(), panels, strict=True):
            for label, axis in line.items():
                if measure in SHARES:
                    axis.yaxis.set_major_formatter(PERCENT)
                for series in results.series:
                    for profile, dash in dashes.items():
                        curves = _curves(results, series, label, measure, profile)
                        if len(curves):
                            _draw_layers(axis, curves, dash, _colour(results, series))
                            drawn[profile] = dash
        _legend(figure, results, drawn)
    return figure


def _draw_layers(axis: Any, curves: NDArray[np.float64], dash: str, colour: str) -> None:
    depth = np.linspace(0, 1, curves.shape[1])
    axis.plot(depth, curves.mean(0), dash, color=colour)
    if dash == "-":
        axis.fill_between(depth, curves.min(0), curves.max(0), color=colour, alpha=0.18, linewidth=0)


def _curves(results: Results, series: Series, label: str, measure: str, profile: str) -> NDArray[np.float64]:
    """A measure (seeds, layers) of the finished cells that have it."""
    curves = (outcome.curve(measure, profile) for outcome in results.of(series, label))
    return np.array([curve for curve in curves if curve is not None])


def plot_pairs(results: Results, x: str, ys: Sequence[str]) -> Figure:
    """Numbers against another one, a panel each and a dot for every finished cell, the larger the deeper its shape."""
    deepest = max(shape.depth for shape in results.study.shapes.values())
    with style():
        figure = Figure(figsize=(0.8 + 3.1 * max(len(ys), 1.6), 3.4), layout="constrained")
        for axis, y in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
            for series in results.series:
                cells = [cell for cell in results.of(series) if {x, y} <= cell.numbers.keys()]
                sizes = [12 + 60 * outcome.cell.shape.depth / deepest for outcome in cells]
                at = [[outcome.numbers[name] for outcome in cells] for name in (x, y)]
                axis.scatter(*at, sizes, _colour(results, series), _mark(results, series), alpha=0.7, linewidths=0)
            axis.set(xlabel=NUMBERS[x], title=NUMBERS[y])
            if y in SHARES:
                axis.yaxis.set_major_formatter(PERCENT)
        _legend(figure, results)
    return figure


def plot_course(results: Results, measure: str, against: str) -> Figure:
    """Similarity after the last block along training, thin for each seed, thick for their mean.

    Args:
        results: of a study.
        measure: of `courses.SIMILARITIES`.
        against: `steps`, `flops` (both on a log axis that begins with zero), or `loss` (which falls to the right).
    """
    with style():
        figure, (panels,) = _panels(results, ALONG[against], [f"{measure.replace('_', ' ')} after the last block"])
        for label, axis in panels.items():
            for series in results.series:
                courses = [outcome.course for outcome in results.of(series, label)]
                curves = [(_along(course, against), course.similarity[measure][:, -1]) for course in courses]
                for x, y in curves:
                    axis.plot(x, y, color=_colour(results, series), alpha=0.35, linewidth=0.8)
                if courses and all(course.steps == courses[0].steps for course in courses):
                    axis.plot(*np.mean(curves, axis=0), color=_colour(results, series))
        shown = np.concatenate([_along(outcome.course, against) for outcome in results.done])
        for axis in panels.values():
            if against == "loss":
                axis.invert_xaxis()
            else:  # from zero to the first look after it on a linear scale
                axis.set_xscale("symlog", linthresh=shown[shown > 0].min(initial=math.inf), linscale=0.5)
        _legend(figure, results)
    return figure


def plot_lengths(results: Results) -> Figure:
    """Loss by the length of held-out text: a line through the means over seeds, and a band over all of them."""
    with style():
        figure, (panels,) = _panels(results, "tokens", ["loss of the last tokens"])
        for label, axis in panels.items():
            for series in results.series:
                losses = [outcome.lengths for outcome in results.of(series, label) if outcome.lengths]
                if losses:
                    lengths, colour = [*losses[0]], _colour(results, series)
                    rows = np.array([[loss[length] for length in lengths] for loss in losses])
                    axis.plot(lengths, rows.mean(0), _mark(results, series) + "-", color=colour, markersize=3.5)
                    axis.fill_between(lengths, rows.min(0), rows.max(0), color=colour, alpha=0.18, linewidth=0)
            axis.relim()  # without zero, which has no place here
            axis.set_xscale("log", base=2)
        _legend(figure, results)
    return figure


def _along(course: Course, against: str) -> NDArray[np.float64]:
    return np.asarray(getattr(course, against), dtype=np.float64)


def _panels(results: Results, x: str, rows: Sequence[str]) -> tuple[Figure, list[dict[str, Any]]]:
    """A figure with a row of panels for each name of a y axis, and in it a panel for each shape, by its label."""
    labels = list(results.study.shapes)
    figure = Figure(figsize=(1.2 + 2.7 * len(labels), 0.8 + 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(labels), sharex="col", sharey="row", squeeze=False)
    for y, axes in zip(rows, grid, strict=True):
        axes[0].set(ylabel=y)
        axes[0].update_datalim([(0, 0)])  # zero is in the picture
    for label, column in zip(labels, grid.T, strict=True):
        column[0].set(title=_title(results, label))
        column[-1].set(xlabel=x)
        column[-1].xaxis.set_major_locator(MaxNLocator(5, integer=x != "relative depth"))
    return figure, [dict(zip(labels, axes, strict=True)) for axes in grid]


def _legend(figure: Figure, results: Results, dashes: Mapping[str, str] = {}) -> None:
    """All objectives and, below, what the styles of lines mean."""
    axis = figure.axes[0]
    lines = [axis.plot([], [], color=_colour(results, s), marker=_mark(results, s))[0] for s in results.series]
    labels = [series.label for series in results.series]
    wide = 0.5 + 0.07 * max(map(len, labels))  # inches of a column
    columns = max(1, min(4, int(figure.get_figwidth() / wide)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(lines, labels, loc="outside upper left", ncols=columns)
    if dashes:
        grey = [axis.plot([], [], dash, color="#57606a")[0] for dash in dashes.values()]
        figure.legend(grey, list(dashes), loc="outside lower left", ncols=3)


def _colour(results: Results, series: Series) -> str:
    """The colour of an objective at a setting, the same in every figure."""
    return str(COLOURS[results.series.index(series) % len(COLOURS)])


def _mark(results: Results, series: Series) -> str:
    """Its mark: another one where the colours begin anew."""
    rounds, place = divmod(results.series.index(series), len(COLOURS))
    return str(MARKS[(rounds + place) % len(MARKS)])


def _title(results: Results, label: str) -> str:
    """A shape as its depth and width, under its name where it has one."""
    shape = results.study.shapes[label]
    return f"{shape.depth} × {shape.width}" if label == str(shape) else f"{label}\n{shape.depth} × {shape.width}"
