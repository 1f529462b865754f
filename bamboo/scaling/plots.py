"""Figures of scaling laws."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.stats import gmean

from bamboo.analysis.plots import COLOURS, style

from .bootstrap import Array
from .loss import Holdout, LossFit
from .optima import Optima, PowerLaw
from .published import PUBLISHED
from .report import TITLES, Report

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (0.0, ""))
CURVES = 6
DATA, COMPUTE = "data (samples or tokens seen)", "compute (FLOPs)"
AXES = {
    "best_batch_at_data": (DATA, "batch size", "loss at fixed data"),
    "best_batch_at_compute": (COMPUTE, "batch size", "loss at fixed compute"),
    "learning_rate": ("batch size", "learning rate", "loss at fixed batch size"),
}


def draw_all(report: Report) -> Iterator[tuple[str, Figure]]:
    """Every figure that the report has numbers for, by the name of its files."""
    with style():
        if report.fit:
            yield "loss", plot_loss(report.fit)
            yield "frontier", plot_frontier(report.fit)
        if report.holdout:
            yield "held_out", plot_holdout(report.holdout)
        for name, optima in report.optima.items():
            yield name, plot_optima(optima, name)


def plot_loss(fit: LossFit) -> Figure:
    """Loss against data, a colour for each size: points are runs, lines the law; the dotted line is its E."""
    figure, axis = _log_axes(5.6, xlabel=DATA, ylabel="loss")
    sizes, data = fit.runs.groupby("parameters"), _span(fit.runs["data"])
    for (size, runs), colour in zip(sizes, _shades(len(sizes)), strict=True):
        axis.plot(data, fit.loss(size, data), color=colour)
        axis.plot(runs["data"], runs["loss"], "o", color=colour, markersize=4, label=_short(size))
    e, a, b, alpha, beta = fit.constants[0]
    if e > 0.6 * fit.runs["loss"].min():
        axis.axhline(e, color="black", linewidth=0.9, linestyle=":")
        axis.annotate(f"E = {e:.3g}", (data[-1], e), (0, 3), textcoords="offset points", ha="right")
    axis.set_title(f"L = {e:.3g} + {a:.3g} / N$^{{{alpha:.2f}}}$ + {b:.3g} / D$^{{{beta:.2f}}}$")
    _ticks(axis.xaxis, axis.yaxis)
    figure.legend(title="parameters", loc="outside right center")
    return figure


def plot_frontier(fit: LossFit) -> Figure:
    """Contours of the fitted loss over compute and parameters, the best size at each budget, and the runs."""
    compute, sizes = _span(fit.runs["compute"], 0.1), fit.runs["parameters"]
    best, low, high = np.transpose([fit.optimum(budget)[0] for budget in compute])
    size = _span([*sizes, *best.clip(sizes.min() / 3, sizes.max() * 3)], 0.1)
    losses = fit.loss(size[:, None], compute / fit.flops / size[:, None])
    levels = np.geomspace(losses.min(), np.percentile(losses, 90), 13)
    figure, axis = _log_axes(5.6, xlabel=COMPUTE, ylabel="parameters", xlim=compute[[0, -1]], ylim=size[[0, -1]])
    picture = axis.contourf(compute, size, losses, levels, norm=LogNorm(), cmap="viridis", alpha=0.85, extend="max")
    figure.colorbar(picture, label="loss", format=FuncFormatter(lambda x, _: f"{x:.3g}"), ticks=levels[::2].tolist())
    value, least, most = fit.exponents[0]
    label = f"best size ∝ C$^{{{value:.2f}}}$ ({least:.2f} to {most:.2f})"
    axis.plot(compute, best, color=COLOURS[1], linewidth=2, label=label)
    axis.fill_between(compute, low, high, color=COLOURS[1], alpha=0.35, linewidth=0)
    axis.plot(fit.runs["compute"], sizes, "o", color="white", markeredgecolor="black", markersize=4, label="runs")
    axis.set_title("fitted loss, and the best size at each budget")
    axis.grid(visible=False)
    _ticks(axis.xaxis, axis.yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_holdout(holdout: Holdout) -> Figure:
    """Measured loss against the prediction of a law fitted without the largest runs; bars are its 95 % interval."""
    held, runs = holdout.held, holdout.fit.runs
    fitted = holdout.fit.loss(runs["parameters"], runs["data"])
    ends = _span([*fitted, *runs["loss"], *held["predicted"], *held["loss"]], 0.05)[[0, -1]]
    bars = np.clip([held["predicted"] - held["low"], held["high"] - held["predicted"]], 0, None)
    figure, axis = _log_axes(4.4, xlabel="predicted loss", ylabel="measured loss", xlim=ends, ylim=ends)
    axis.plot(ends, ends, color="0.6", linewidth=1)
    axis.plot(fitted, runs["loss"], "o", markersize=4, color=COLOURS[0], label="fitted")
    axis.errorbar(held["predicted"], held["loss"], None, bars, "D", color=COLOURS[1], capsize=2, label="held out")
    axis.set_title(f"{holdout.reach:.2g} times the compute: off by {holdout.error:.2g} %")
    _ticks(axis.xaxis, axis.yaxis)
    axis.legend(loc="upper left")
    return figure


def plot_optima(optima: Optima, name: str) -> Figure:
    """Loss against the setting at each budget (left), and the best setting against the budget (right).

    A hollow mark is a lowest loss at the edge of what was tried, which the law leaves out. Published exponents are
    drawn through the middle of the points, since their prefactors are in tokens.
    """
    (title, variable), (across, setting, left_title) = TITLES[name], AXES[name]
    count = len(optima.table)
    shown = {round(i) for i in np.linspace(0, count - 1, CURVES)}
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (row, colour) in enumerate(zip(optima.table.itertuples(), _shades(count), strict=True)):
        mark = {"color": colour, "markerfacecolor": "white" if row.edge else colour, "zorder": 3}
        right.plot(row.at, row.best, "D", **mark)
        if i in shown:
            _draw_valley(left, row, colour)
            left.plot(row.best, 0.0, "D", **mark)
    if optima.law:
        _draw_law(right, optima.law, f"{title}: exponent in {variable}")
        figure.legend(loc="outside lower center", ncols=2)
    some = "" if len(shown) == count else f" ({len(shown)} of {count})"
    left.set(xscale="log", xlabel=setting, ylabel="loss above the lowest, %", title=left_title + some)
    right.set(xscale="log", yscale="log", xlabel=across, ylabel=f"best {setting}", title=title)
    _ticks(left.xaxis, right.xaxis, right.yaxis)
    return figure


def _log_axes(width: float, **settings: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    return figure, figure.add_subplot(xscale="log", yscale="log", **settings)


def _draw_valley(axis: Any, row: Any, colour: Any) -> None:
    """Losses of a budget in percent above the lowest, and the parabola between the neighbours of the best setting."""
    settings, losses = np.array([*row.losses.items()]).T
    axis.plot(settings, 100 * (losses / row.loss - 1), "o-", color=colour, markersize=3.5, linewidth=0.5)
    if not row.edge:
        lowest = losses.argmin()
        fine = np.geomspace(settings[lowest - 1], settings[lowest + 1], 50)
        axis.plot(fine, 100 * (np.polyval(row.parabola, np.log(fine)) / row.loss - 1), color=colour)


def _draw_law(axis: Any, law: PowerLaw, quantity: str) -> None:
    """The law with its interval, and published exponents through the middle of its points."""
    x, (value, least, most) = _span(law.x, 0.1), law.exponent
    values, low, high = np.transpose([law.predict(at) for at in x])
    axis.plot(x, values, color="black", label=f"exponent {value:.2f} ({least:.2f} to {most:.2f})")
    axis.fill_between(x, low, high, color="black", alpha=0.1, linewidth=0)
    published, middle = PUBLISHED[quantity][0], float(gmean(law.x))
    for end, label in {published.high: None, published.low: f"published: exponent {published.text}"}.items():
        axis.plot(x, law.predict(middle).value * (x / middle) ** end, "--", color=COLOURS[1], label=label)


def _shades(count: int) -> Any:
    """(count, 4) colours from dark to light."""
    return colormaps["viridis"](np.linspace(0, 0.88, count))


def _span(values: Any, margin: float = 0.03) -> Array:
    """(100,) from the lowest to the highest, in logarithmic steps, with a share of the span more on either side."""
    low, high = np.log(min(values)), np.log(max(values))
    more = margin * (high - low)
    return np.geomspace(np.exp(low - more), np.exp(high + more), 100)


def _short(value: float) -> str:
    """Such as 85M."""
    size, letter = next((size, letter) for size, letter in UNITS if value >= size)
    return f"{value / (size or 1):.4g}{letter}"


def _ticks(*axes: Any) -> None:
    """Label logarithmic axes with a few round numbers such as 500 or 0.85; powers of ten where they span many."""
    for axis in axes:
        low, high = axis.get_view_interval()
        if high < 1000 * low:
            subs = (1.0, 2.0, 5.0) if high < 60 * low else (1.0, 3.0)
            axis.set_major_locator(MaxNLocator(6) if high < 5 * low else LogLocator(subs=subs, numticks=8))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
            axis.set_minor_locator(NullLocator())
