"""What all figures of a study share: a colour and a mark for each objective, and names where lines end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bamboo.analysis.plots import COLOURS, MARKS

from .results import Results, Series


def colour(results: Results, series: Series) -> str:
    """The colour of an objective at a setting, the same in every figure."""
    return str(COLOURS[results.series.index(series) % len(COLOURS)])


def mark(results: Results, series: Series) -> str:
    """Its mark."""
    return str(MARKS[results.series.index(series) % len(MARKS)])


def words(results: Results, label: str) -> str:
    """A shape as its depth and width, under its name where it has one."""
    shape = results.study.shapes[label]
    return f"{shape.depth} × {shape.width}" if label == str(shape) else f"{label}\n{shape.depth} × {shape.width}"


def legend(figure: Figure, results: Results) -> None:
    """All objectives, above a figure of several panels."""
    axis = figure.axes[0]
    lines = [axis.plot([], [], color=colour(results, s), marker=mark(results, s))[0] for s in results.series]
    figure.legend(lines, [series.label for series in results.series], loc="outside upper left", ncols=4)


def label_ends(axis: Any, results: Results, ends: Sequence[tuple[float, Series]]) -> None:
    """Names beside the ends of lines, pushed apart where they would lie on one another."""
    low, high = axis.get_ylim()
    gap, last = 0.07 * (high - low), -np.inf
    for height, series in sorted(ends):
        last = max(height, last + gap)
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axis.annotate(f" {series.label}", (1.01, last), color=colour(results, series), **where)
