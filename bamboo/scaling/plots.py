"""Figures of scaling laws."""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.stats import gmean

from bamboo.analysis.plots import COLOURS, style

from .bootstrap import Array
from .loss import Holdout, LossFit
from .optima import Optima, PowerLaw
from .published import PUBLISHED
from .report import TITLES, Report

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
LEGEND, CURVES = 8, 6
RUNS: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4}
DATA, COMPUTE = "data (samples or tokens seen)", "compute (FLOPs)"
AXES = {
    "best_batch_at_data": (DATA, "batch size", "loss at fixed data"),
    "best_batch_at_compute": (COMPUTE, "batch size", "loss at fixed compute"),
    "learning_rate": ("batch size", "learning rate", "loss at fixed batch size"),
}


def draw_all(report: Report) -> Iterator[tuple[str, Figure]]:
    """Every figure that the report has numbers for, by the name of its files."""
    if report.fit:
        yield "loss", plot_loss(report.fit)
        yield "frontier", plot_frontier(report.fit)
    if report.holdout:
        yield "held_out", plot_holdout(report.holdout)
    for name, found in report.optima.items():
        yield name, plot_optima(found, name)


def plot_loss(fit: LossFit) -> Figure:
    """Loss against data, a colour for each size: points are runs, lines the law; the dotted line is its E."""
    sizes = fit.runs.groupby("parameters")
    data = _span(fit.runs["data"])
    with style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        for (size, runs), colour in zip(sizes, _shades(len(sizes)), strict=True):
            axis.plot(data, fit.loss(size, data), color=colour)
            axis.plot(runs["data"], runs["loss"], **RUNS, color=colour, label=_short(size))
        floor = fit.constants[0, 0]
        if floor > 0.6 * fit.runs["loss"].min():
            axis.axhline(floor, color="black", linewidth=0.9, linestyle=":")
            axis.annotate(f"E = {floor:.3g}", (data[-1], floor), (0, 3), textcoords="offset points", ha="right")
        axis.set(xscale="log", yscale="log", xlabel=DATA, ylabel="loss")
        e, a, b, alpha, beta = fit.constants[0]
        axis.set_title(f"L = {e:.3g} + {a:.3g} / N$^{{{alpha:.2f}}}$ + {b:.3g} / D$^{{{beta:.2f}}}$")
        _ticks(axis.xaxis, axis.yaxis)
        handles, labels = axis.get_legend_handles_labels()
        shown = _spread(len(labels), LEGEND)
        legend = {"title": "parameters", "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axis.legend([handles[i] for i in shown], [labels[i] for i in shown], **legend)
    return figure


def plot_frontier(fit: LossFit) -> Figure:
    """Contours of the fitted loss over compute and parameters, the best size at each budget, and the runs."""
    compute, sizes = _span(fit.runs["compute"], 0.1), fit.runs["parameters"]
    best, low, high = np.transpose([fit.optimum(budget)[0] for budget in compute])
    size = _span([*sizes, *best.clip(sizes.min() / 3, sizes.max() * 3)], 0.1)
    losses = fit.loss(size[:, None], compute / fit.flops / size[:, None])
    levels = np.geomspace(losses.min(), np.percentile(losses, 90), 13)
    with style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
        picture = axis.contourf(compute, size, losses, levels, norm=norm, cmap="viridis", alpha=0.85, extend="max")
        bar = figure.colorbar(picture, label="loss", format=FuncFormatter(lambda value, _: f"{value:.3g}"))
        bar.set_ticks(levels[::2].tolist())
        axis.fill_between(compute, low, high, color=COLOURS[1], alpha=0.35, linewidth=0)
        value, least, most = fit.exponents[0]
        label = f"best size ∝ C$^{{{value:.2f}}}$ ({least:.2f} to {most:.2f})"
        axis.plot(compute, best, color=COLOURS[1], linewidth=2, label=label)
        axis.plot(fit.runs["compute"], sizes, **RUNS, color="white", markeredgecolor="black", label="runs")
        axis.set(xscale="log", yscale="log", xlabel=COMPUTE, ylabel="parameters")
        axis.set(xlim=compute[[0, -1]], ylim=size[[0, -1]], title="fitted loss, and the best size at each budget")
        axis.grid(visible=False)
        _ticks(axis.xaxis, axis.yaxis)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_holdout(holdout: Holdout) -> Figure:
    """Measured loss against the prediction of a law fitted without the largest runs; bars are its 95 % interval."""
    held, runs = holdout.held, holdout.fit.runs
    fitted = holdout.fit.loss(runs["parameters"], runs["data"])
    ends = _span([*fitted, *runs["loss"], *held["predicted"], *held["loss"]], 0.05)[[0, -1]]
    bars = [held["predicted"] - held["low"], held["high"] - held["predicted"]]
    with style():
        figure = Figure(figsize=(4.4, 3.8), layout="constrained")
        axis = figure.subplots()
        axis.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
        axis.plot(fitted, runs["loss"], **RUNS, color=COLOURS[0], label="fitted")
        look = {"fmt": "D", "color": COLOURS[1], "markersize": 5, "capsize": 2, "label": "held out"}
        axis.errorbar(held["predicted"], held["loss"], xerr=np.clip(bars, 0, None), **look)
        axis.set(xscale="log", yscale="log", xlabel="predicted loss", ylabel="measured loss", xlim=ends, ylim=ends)
        axis.set_title(f"{holdout.reach:.2g} times the compute: off by {holdout.error:.2g} %")
        _ticks(axis.xaxis, axis.yaxis)
        axis.legend(loc="upper left")
    return figure


def plot_optima(found: Optima, name: str) -> Figure:
    """Loss against the setting at each budget (left), and the best setting against the budget (right).

    A hollow mark is a lowest loss at the edge of what was tried, which the law leaves out. Published exponents are
    drawn through the middle of the points, since their prefactors are in tokens.
    """
    (title, variable), (across, setting, left_title) = TITLES[name], AXES[name]
    count = len(found.table)
    shades, shown = _shades(count), _spread(count, CURVES)
    with style():
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, row in enumerate(found.table.itertuples()):
            mark = {"color": shades[i], "markerfacecolor": "white" if row.edge else shades[i], "zorder": 3}
            right.plot(row.at, row.best, "D", **mark)
            if i in shown:
                _draw_valley(left, row, shades[i])
                left.plot(row.best, 0.0, "D", **mark)
        if found.law:
            _draw_law(right, found.law, f"{title}: exponent in {variable}")
            figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        some = "" if len(shown) == count else f" ({len(shown)} of {count})"
        left.set(xscale="log", xlabel=setting, ylabel="loss above the lowest, %", title=left_title + some)
        right.set(xscale="log", yscale="log", xlabel=across, ylabel=f"best {setting}", title=title)
        _ticks(left.xaxis, right.xaxis, right.yaxis)
    return figure


def _draw_valley(axis: Any, row: Any, colour: Any) -> None:
    """Losses of a budget in percent above the lowest, and the parabola between the neighbours of the best setting."""
    settings, losses = np.array([*row.losses.items()]).T
    axis.plot(settings, 100 * (losses / row.loss - 1), "o-" if row.edge else "o", color=colour, markersize=3.5)
    if not row.edge:
        lowest = losses.argmin()
        fine = np.geomspace(settings[lowest - 1], settings[lowest + 1], 50)
        axis.plot(fine, 100 * (np.polyval(row.parabola, np.log(fine)) / row.loss - 1), color=colour)


def _draw_law(axis: Any, law: PowerLaw, quantity: str) -> None:
    """The law with its interval, and published exponents through the middle of its points."""
    x = _span(law.x, 0.1)
    values, low, high = np.transpose([law.predict(at) for at in x])
    value, least, most = law.exponent
    axis.plot(
        x, values, color="black", linewidth=1.4, label=f"exponent {value:.2f} ({least:.2f} to {most:.2f})", zorder=2
    )
    axis.fill_between(x, low, high, color="black", alpha=0.1, linewidth=0)
    published, middle = PUBLISHED[quantity][0], float(gmean(law.x))
    for end, label in {published.high: None, published.low: f"published: exponent {published.text}"}.items():
        level = law.predict(middle).value * (x / middle) ** end
        axis.plot(x, level, "--", color=COLOURS[1], label=label)


def _shades(count: int) -> Any:
    """(count, 4) colours from dark to light."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, count))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of so many indices, evenly spread, both ends among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def _span(values: Any, margin: float = 0.03) -> Array:
    """(100,) from the lowest to the highest, in logarithmic steps, with a margin on either side."""
    low, high = np.log(min(values)), np.log(max(values))
    more = margin * (high - low)
    return np.geomspace(np.exp(low - more), np.exp(high + more), 100)


def _short(value: float) -> str:
    """Such as 85M."""
    size, letter = next(((size, letter) for size, letter in UNITS if value >= size), (1, ""))
    return f"{value / size:.4g}{letter}"


def _ticks(*axes: Any) -> None:
    """Label logarithmic axes with a few round numbers such as 500 or 0.85; powers of ten where they span many."""
    for axis in axes:
        low, high = axis.get_view_interval()
        if high < 1000 * low:
            subs = (1.0, 2.0, 5.0) if high < 60 * low else (1.0, 3.0)
            axis.set_major_locator(MaxNLocator(6) if high < 5 * low else LogLocator(subs=subs, numticks=8))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
            axis.set_minor_formatter(NullFormatter())
