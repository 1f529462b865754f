"""Figures of scaling laws."""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bamboo.analysis.plots import COLOURS, plain_ticks, style

from .batches import BatchLaw
from .estimates import Array
from .loss import Holdout, LossFit
from .power_laws import PowerLaw
from .published import PUBLISHED
from .report import Report
from .runs import group

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
LEGEND, CURVES = 8, 6


def draw_all(report: Report) -> Iterator[tuple[str, Figure]]:
    """Every figure that the report has numbers for, by the name of its files."""
    if report.fit:
        yield "loss", plot_loss(report.fit)
        yield "frontier", plot_frontier(report.fit)
    if report.holdout:
        yield "held_out", plot_holdout(report.holdout)
    for name, found in (("data", report.at_data), ("compute", report.at_compute)):
        if found:
            yield f"best_batch_at_{name}", plot_best_batch(found, name)
    if report.rates:
        yield "learning_rate", plot_learning_rate(report.rates)


def plot_loss(fit: LossFit) -> Figure:
    """Loss against data, a colour for each size: points are runs, lines the law; the dotted line is its E."""
    sizes = group(sorted(fit.runs, key=lambda run: run.parameters), lambda run: run.parameters)
    data = _span([run.data for run in fit.runs])
    with style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        for (size, runs), colour in zip(sizes.items(), _shades(len(sizes)), strict=True):
            axis.plot(data, fit.loss(size, data), color=colour)
            axis.plot(
                [run.data for run in runs],
                [run.loss for run in runs],
                "o",
                color=colour,
                markersize=4,
                label=_short(size),
            )
        floor = fit.estimates["E"]
        if floor.value > 0.6 * min(run.loss for run in fit.runs):
            axis.axhline(floor.value, color="black", linewidth=0.9, linestyle=":")
            axis.annotate(
                f"E = {floor.value:.3g}", (data[-1], floor.value), (0, 3), textcoords="offset points", ha="right"
            )
        axis.set(xscale="log", yscale="log", xlabel="data (samples or tokens seen)", ylabel="loss")
        axis.set_title(_formula(fit))
        _log_ticks(axis.xaxis)
        _loss_ticks(axis.yaxis)
        axis.legend(*_thinned(axis), title="parameters", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_frontier(fit: LossFit) -> Figure:
    """Contours of the fitted loss over compute and parameters, the best size at each budget, and the runs."""
    compute = _span([run.compute for run in fit.runs], 0.1)
    best = [fit.optimum(budget)[0] for budget in compute]
    values, low, high = np.array(best).T
    size = _span([*(run.parameters for run in fit.runs), *values.clip(*_ends(fit))], 0.1)
    with style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        losses = fit.loss(size[:, None], compute / fit.flops / size[:, None])
        levels = np.geomspace(losses.min(), np.percentile(losses, 90), 13)
        norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
        picture = axis.contourf(compute, size, losses, levels, norm=norm, cmap="viridis", alpha=0.85, extend="max")
        bar = figure.colorbar(picture, label="loss", format=FuncFormatter(lambda value, _: f"{value:.3g}"))
        bar.set_ticks(levels[::2].tolist())
        axis.fill_between(compute, low, high, color=COLOURS[1], alpha=0.35, linewidth=0)
        exponent = fit.exponents[0]
        told = f"best size ∝ C$^{{{exponent.value:.2f}}}$ ({exponent.low:.2f} to {exponent.high:.2f})"
        axis.plot(compute, values, color=COLOURS[1], linewidth=2, label=told)
        axis.plot(
            [r.compute for r in fit.runs],
            [r.parameters for r in fit.runs],
            "o",
            color="white",
            markeredgecolor="black",
            markersize=4,
            label="runs",
        )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="compute C (FLOPs)",
            ylabel="parameters",
            ylim=(size[0], size[-1]),
            xlim=(compute[0], compute[-1]),
        )
        axis.set_title("fitted loss, and the best size at each budget")
        axis.grid(visible=False)
        _log_ticks(axis.yaxis)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_holdout(held: Holdout) -> Figure:
    """Measured loss against the prediction of a law fitted without the largest runs; bars are its 95 % interval."""
    with style():
        figure = Figure(figsize=(4.4, 3.8), layout="constrained")
        axis = figure.subplots()
        runs = held.fit.runs
        fitted = [float(held.fit.loss(run.parameters, run.data)) for run in runs]
        measured, guesses = [run.loss for run in held.held], np.array(held.predicted)
        ends = _span([*fitted, *guesses[:, 0], *measured, *(run.loss for run in runs)], 0.05)[[0, -1]]
        axis.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
        axis.plot(fitted, [run.loss for run in runs], "o", color=COLOURS[0], markersize=4, label="fitted")
        bars = np.abs(guesses[:, 1:] - guesses[:, :1]).T
        axis.errorbar(
            guesses[:, 0], measured, xerr=bars, fmt="D", color=COLOURS[1], markersize=5, capsize=2, label="held out"
        )
        axis.set(xscale="log", yscale="log", xlabel="predicted loss", ylabel="measured loss", xlim=ends, ylim=ends)
        axis.set_title(f"{held.reach:.2g} times the compute: off by {held.error:.2g} %")
        for side in (axis.xaxis, axis.yaxis):
            _loss_ticks(side)
        axis.legend(loc="upper left")
    return figure


def plot_best_batch(found: BatchLaw, at: str) -> Figure:
    """Loss against batch size at each budget (left), and the best batch size against the budget (right).

    A hollow mark is a lowest loss at the edge of what was tried, which the law leaves out. The published exponent is
    drawn through the middle of our points, since its prefactor is in tokens.
    """
    published = PUBLISHED[f"best batch at fixed {at}: exponent in {'D' if at == 'data' else 'C'}"][0]
    across = "data (samples or tokens seen)" if at == "data" else "compute (FLOPs)"
    with style():
        figure, (left, right) = _pair()
        _valleys(left, found, "batch size", f"loss at fixed {at}")
        _best(right, found, across, "best batch size")
        if found.law:
            _law(right, found.law)
            _beside(right, found.law, (published.low,), f"published: exponent {published.value}")
        right.set_title(f"best batch size at fixed {at}")
        _finish(figure, right)
    return figure


def plot_learning_rate(found: BatchLaw) -> Figure:
    """Loss against learning rate (left), and the best learning rate against the batch size (right)."""
    published = PUBLISHED["best learning rate: exponent in batch size"][0]
    with style():
        figure, (left, right) = _pair()
        _valleys(left, found, "learning rate", "loss at fixed batch size")
        _best(right, found, "batch size", "best learning rate")
        if found.law:
            _law(right, found.law)
            _beside(right, found.law, (published.low, published.high), f"published: exponent {published.value}")
        right.set_title("best learning rate")
        _finish(figure, right)
    return figure


def _pair() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    return figure, figure.subplots(1, 2)


def _valleys(axis: Any, found: BatchLaw, across: str, title: str) -> None:
    """For some of the budgets the losses, their parabola and its lowest point, as percentages above that point."""
    chosen = _spread(len(found.optima), CURVES)
    shades = _shades(len(found.optima))
    for optimum, colour in ((found.optima[i], shades[i]) for i in chosen):
        above = 100 * (np.array(optimum.losses) / optimum.loss - 1)
        axis.plot(optimum.settings, above, "o-", color=colour, markersize=3.5, linewidth=0.8, alpha=0.8)
        curve = optimum.parabola()
        if curve:
            lowest = int(np.argmin(optimum.losses))
            fine = np.geomspace(optimum.settings[lowest - 1], optimum.settings[lowest + 1], 50)
            bowl = 100 * (np.polyval(curve, np.log(fine)) / optimum.loss - 1)
            axis.plot(fine, bowl, color=colour, linewidth=2.2)
        _mark(axis, optimum.best, 0.0, colour, optimum.edge)
    axis.set(xscale="log", xlabel=across, ylabel="loss above the lowest, %")
    some = "" if len(chosen) == len(found.optima) else f" ({len(chosen)} of {len(found.optima)})"
    axis.set_title(title + some)
    _setting_ticks(axis.xaxis)


def _best(axis: Any, found: BatchLaw, across: str, up: str) -> None:
    for optimum, colour in zip(found.optima, _shades(len(found.optima)), strict=True):
        _mark(axis, optimum.at, optimum.best, colour, optimum.edge)
    axis.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    _setting_ticks(axis.yaxis)
    _log_ticks(axis.xaxis)


def _mark(axis: Any, x: float, y: float, colour: Any, edge: bool) -> None:
    axis.plot([x], [y], "D", color=colour, markersize=6, markerfacecolor="white" if edge else colour, zorder=3)


def _law(axis: Any, law: PowerLaw) -> None:
    x = _span(list(law.x), 0.1)
    values, low, high = np.array([law.predict(value) for value in x]).T
    exponent = law.exponent
    told = f"ours: exponent {exponent.value:.2f} ({exponent.low:.2f} to {exponent.high:.2f})"
    axis.plot(x, values, color="black", linewidth=1.4, label=told, zorder=2)
    axis.fill_between(x, low, high, color="black", alpha=0.1, linewidth=0)


def _beside(axis: Any, law: PowerLaw, exponents: tuple[float, ...], label: str) -> None:
    """Published exponents, as lines through the middle of the points."""
    x = _span(list(law.x), 0.1)
    middle = float(np.exp(np.log(law.x).mean()))
    level = law.predict(middle).value
    for k, exponent in enumerate(exponents):
        axis.plot(x, level * (x / middle) ** exponent, "--", color=COLOURS[1], label=None if k else label)


def _finish(figure: Figure, right: Any) -> None:
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def _formula(fit: LossFit) -> str:
    e, a, b, alpha, beta = fit.constants
    return f"L = {e:.3g} + {a:.3g} / N$^{{{alpha:.2f}}}$ + {b:.3g} / D$^{{{beta:.2f}}}$"


def _shades(count: int) -> list[Any]:
    """Colours from dark to light for things in order."""
    return [matplotlib.colormaps["viridis"](share) for share in np.linspace(0, 0.88, count)]


def _thinned(axis: Any) -> tuple[list[Any], list[str]]:
    """At most some entries of a legend, evenly spread."""
    handles, labels = axis.get_legend_handles_labels()
    chosen = _spread(len(labels), LEGEND)
    return [handles[i] for i in chosen], [labels[i] for i in chosen]


def _spread(count: int, most: int) -> list[int]:
    """At most some of so many indices, evenly spread, both ends among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def _span(values: Sequence[float], margin: float = 0.03) -> Array:
    """From the lowest to the highest, in logarithmic steps, with a margin on either side."""
    low, high = np.log(min(values)), np.log(max(values))
    more = margin * (high - low)
    return np.exp(np.linspace(low - more, high + more, 100))


def _ends(fit: LossFit) -> tuple[float, float]:
    """Sizes worth showing: three times beyond the runs on either side."""
    sizes = [run.parameters for run in fit.runs]
    return min(sizes) / 3, max(sizes) * 3


def _short(value: float) -> str:
    """Such as 85M."""
    for size, letter in UNITS:
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _log_ticks(axis: Any) -> None:
    """Powers of ten, or where there are too few of them numbers such as 512k."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        _setting_ticks(axis)


def _setting_ticks(axis: Any) -> None:
    """Numbers such as 500 or 0.002, not too many."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.8 else (1.0, 3.0) if decades < 2.8 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())


def _loss_ticks(axis: Any) -> None:
    """Numbers that are close enough for losses, which span little."""
    low, high = axis.get_view_interval()
    if high > 8 * low:
        plain_ticks(axis)
        return
    subs = np.arange(1, 10, 0.1 if high < 1.5 * low else 0.5 if high < 3 * low else 1.0)
    axis.set_major_locator(LogLocator(subs=tuple(subs), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())
