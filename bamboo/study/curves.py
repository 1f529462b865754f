"""Figures with layers or steps across and a panel for each shape: how alike tokens are, and how they came to be so."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bamboo.analysis.plots import style

from .look import colour, label_ends, words
from .results import Results, Series

UNTRAINED = "untrained, held-out, whole"
WHOLE = "trained, held-out, whole"
ELSEWHERE = {
    WHOLE: ("-", "held-out, whole"),
    "trained, train, whole": (":", "training samples, whole"),
    "trained, held-out, masked": ("-.", "held-out, masked length"),
}

Draw = Callable[[Any, Series, str], float | None]
"""Draws a series and a shape on an axis, and gives the height at which its line ends."""


def plot_over_depth(results: Results) -> Figure:
    """Token similarity by block, trained and (dashed) untrained."""

    def draw(axis: Any, series: Series, label: str) -> float | None:
        before, after = (_table(results, series, label, which) for which in (UNTRAINED, WHOLE))
        tint = colour(results, series)
        if before is not None:
            axis.plot(before.mean(0), "--", color=tint, alpha=0.7, linewidth=1.1)
        if after is None:
            return None
        axis.plot(after.mean(0), color=tint)
        axis.fill_between(range(after.shape[1]), after.min(0), after.max(0), color=tint, alpha=0.18, linewidth=0)
        return float(after.mean(0)[-1])

    return _panels(results, draw, "block", "token similarity")


def plot_elsewhere(results: Results) -> Figure:
    """Held-out samples beside training samples and masked ones."""

    def draw(axis: Any, series: Series, label: str) -> float | None:
        end = None
        for which, (dash, _) in ELSEWHERE.items():
            table = _table(results, series, label, which)
            if table is not None:
                axis.plot(table.mean(0), dash, color=colour(results, series))
                end = float(table.mean(0)[-1]) if end is None else end
        return end

    figure = _panels(results, draw, "block", "token similarity")
    with style():
        handles = [figure.axes[0].plot([], [], dash, color="#57606a")[0] for dash, _ in ELSEWHERE.values()]
        figure.legend(handles, [name for _, name in ELSEWHERE.values()], loc="outside lower left", ncols=3)
    return figure


def plot_training(results: Results) -> Figure:
    """Similarity after the last block over optimizer steps, thin for each seed, thick for their mean."""

    def draw(axis: Any, series: Series, label: str) -> float | None:
        lines = [one.course for one in results.of(series, label)]
        for steps, table in lines:
            axis.plot(steps, table[:, -1], color=colour(results, series), alpha=0.35, linewidth=0.8)
        if not lines or any(steps != lines[0][0] for steps, _ in lines):
            return None
        mean = np.mean([table[:, -1] for _, table in lines], axis=0)
        axis.plot(lines[0][0], mean, color=colour(results, series))
        return float(mean[-1])

    return _panels(results, draw, "optimizer steps", "similarity after the last block")


def _panels(results: Results, draw: Draw, x: str, y: str) -> Figure:
    labels = list(results.study.shapes)
    with style():
        figure = Figure(figsize=(1.2 + 2.7 * len(labels), 3.1), layout="constrained")
        axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
        for axis, label in zip(axes, labels, strict=True):
            ends = [(draw(axis, series, label), series) for series in results.series]
            axis.set(title=words(results, label), xlabel=x)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes[0].set_ylabel(y)
        axes[0].set_ylim(min(axes[0].get_ylim()[0], 0), 1.02)
        label_ends(axes[-1], results, [(end, series) for end, series in ends if end is not None])
    return figure


def _table(results: Results, series: Series, label: str, which: str) -> NDArray[np.float64] | None:
    """Token similarity (seeds, layers) of a series and shape."""
    found = [one.profiles for one in results.of(series, label)]
    rows = [profiles[which].curve("token_similarity").mean for profiles in found if which in profiles]
    return np.stack(rows) if rows else None
