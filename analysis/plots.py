"""Figures of profiles, without a display: curves over depth, spectra, and files of them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .measures.definitions import describe

if TYPE_CHECKING:
    from .profiles import Profile

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKS = ("o", "s", "^", "D", "v", "P", "X")
SHARES = {
    "common_share": "#8C959F",
    "sample_share": "#D55E00",
    "position_share": "#56B4E9",
    "own_share": "#EAEEF2",
}
"""Shares of similarity from below, in their colours; the lower two make up token similarity."""
PLACES = ("stream", "attention", "mlp")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "bamboo",  # the same numbers give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, undone afterwards."""
    with matplotlib.rc_context(STYLE):
        yield


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other; `path` has no suffix. Each appears complete or not at all."""
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with style():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once is enough, and slow
    for target in paths:
        with atomic_write(target) as temporary, style():
            metadata = {"Date": None} if target.suffix == ".svg" else {}
            figure.savefig(temporary, format=target.suffix[1:], metadata=metadata, bbox_inches="tight")
    return paths


def panels(count: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels in up to `columns` columns, each of a width and height in inches, and their axes."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.6 + width * columns, 0.5 + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).flatten()
    for axis in axes[count:]:
        axis.axis("off")
    return figure, list(axes[:count])


def plot_curves(profiles: Sequence["Profile"], measures: Sequence[str], relative: bool = True) -> Figure:
    """One panel for each measure and place (stream, attention, MLP) at which it was taken, one colour per model.

    Lines are means over samples, bands 95 % intervals; a mark at the end is the state after the final norm; a freshly
    initialised model is dashed, in the colour of the model that it belongs to. Measures that no profile has are left
    out. With `relative`, depth is a share of the model's own instead of the number of blocks.

    Raises:
        InputError: where none of the measures was taken.
    """
    curves = [(name, at) for name in measures for at in PLACES if any(p.has(name, at) for p in profiles)]
    if not curves:
        raise InputError(f"none of these was measured: {', '.join(measures)}")
    with style():
        figure, axes = panels(len(curves), 3, 3.3, 2.6)
        for axis, (measure, place) in zip(axes, curves, strict=True):
            _panel(axis, profiles, measure, place, relative)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
    return figure


def plot_shares(profiles: Sequence["Profile"]) -> Figure:
    """Stacked areas of the shares of similarity over blocks, and token similarity as a line: a panel for each model."""
    measured = [profile for profile in profiles if profile.has("common_share")]
    if not measured:
        raise InputError("no shares of similarity were measured")
    with style():
        figure, axes = panels(len(measured), 4, 3.0, 2.6, sharey=True)
        for axis, profile in zip(axes, measured, strict=True):
            names = [name for name in SHARES if profile.has(name)]
            layers, heights = profile.curve(names[0]).layers, [profile.curve(name).mean for name in names]
            titles, tints = [describe(name).title for name in names], [SHARES[name] for name in names]
            axis.stackplot(layers, heights, colors=tints, labels=titles)
            if profile.has("token_similarity"):
                axis.plot(layers, profile.curve().mean, color="black", label="token similarity")
            axis.set(title=profile.label, xlabel="block", xlim=(0, profile.depth), ylim=(0, 1))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(visible=False)
        axes[0].set_ylabel("share of energy")
        fullest = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1]))
        columns = 5 if len(axes) > 1 else 2
        figure.legend(*fullest.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return figure


def _panel(axis: Any, profiles: Sequence["Profile"], measure: str, place: str, relative: bool) -> None:
    for number, (profile, colour) in enumerate(zip(profiles, colours(profiles), strict=True)):
        dash = "--" if profile.baseline else "-"
        if not profile.has(measure, place):
            axis.plot([], [], dash, color=colour, label=profile.label)  # the legend still names it
            continue
        curve = profile.curve(measure, place)
        depth = np.asarray(curve.layers) / (profile.depth if relative else 1)
        axis.plot(depth, curve.mean, dash, color=colour, label=profile.label)
        axis.fill_between(depth, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        if place == "stream" and profile.has(measure, "norm"):
            after = profile.curve(measure, "norm")
            mark = {"marker": MARKS[number % len(MARKS)], "markersize": 5, "markerfacecolor": "white"}
            axis.plot(depth[-1:], after.mean, color=colour, clip_on=False, **mark)
    branch = {"attention": ": attention", "mlp": ": MLP"}.get(place, "") if measure == "update_ratio" else ""
    axis.set_title(describe(measure).title + branch)
    axis.set_xlabel("relative depth" if relative else "block")
    if not relative:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _limits(axis, measure)


def _limits(axis: Any, measure: str) -> None:
    """Similarities on one scale, and nothing below zero that cannot be there."""
    low, high = axis.get_ylim()
    if "similarity" in measure:
        axis.set_ylim(min(low, 0.0), 1.02)
    elif low < 0.25 * high:
        axis.set_ylim(0.0, high)


def colours(profiles: Sequence["Profile"]) -> list[str]:
    """A colour for each profile; a fresh model follows the one that it belongs to and has its colour."""
    chosen: list[str] = []
    models = 0
    for profile in profiles:
        own = not profile.baseline or not chosen
        chosen.append(COLOURS[models % len(COLOURS)] if own else chosen[-1])
        models += own
    return chosen


def plot_spectra(profiles: Sequence["Profile"]) -> Figure:
    """A picture for each model: share of energy (colour, logarithmic) by layer (across) and ring of frequency (up)."""
    measured = [profile for profile in profiles if profile.has("spectrum/0")]
    if not measured:
        raise InputError("no spectrum was measured")
    with style():
        figure, axes = panels(len(measured), 4, 2.9, 2.6)
        tables = [_spectrum(profile) for profile in measured]
        floor = max(min(float(table[table > 0].min()) for table in tables), 1e-5)
        for axis, profile, table in zip(axes, measured, tables, strict=True):
            norm = matplotlib.colors.LogNorm(floor, 1)
            picture = axis.imshow(table.clip(floor), origin="lower", aspect="auto", norm=norm, cmap="magma")
            axis.set(title=profile.label, xlabel="block")
            axis.grid(visible=False)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("ring of frequency (0: mean token)")
        figure.colorbar(picture, ax=axes, label="share of energy")
    return figure


def _spectrum(profile: "Profile") -> Any:
    """(rings, layers)."""
    names = [measure for at, measure in profile.measured if at == "stream" and measure.startswith("spectrum/")]
    return np.stack([profile.curve(name).mean for name in names])
