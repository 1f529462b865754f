"""The bound of Wang et al. 2022 on what attention leaves of the high-frequency part, beside what it does leave."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bamboo.errors import InputError

from .intervals import Array
from .plots import COLOURS, plain_ticks, style
from .profiles import Curve, Profile


class Check(NamedTuple):
    """The bound and the measured gain of ||HC|| over blocks, for the attention branch alone or with its residual."""

    gain: Curve
    bound: Curve

    @property
    def looseness(self) -> Array:
        """How many times the bound is the measured gain, per block; at least 1."""
        return self.bound.mean / self.gain.mean


def check_theory(profile: Profile) -> tuple[Check, Check]:
    """The check without and with the residual.

    Raises:
        InputError: where the measures of the group `attention` were not taken.
    """
    names = ("attention", "residual")
    if not all(profile.has(f"{name}_{part}", "attention") for name in names for part in ("gain", "bound")):
        raise InputError(f"{profile.label}: the bound needs the measures of the group 'attention'")
    without, beside = (
        Check(profile.curve(f"{name}_gain", "attention"), profile.curve(f"{name}_bound", "attention")) for name in names
    )
    return without, beside


def describe_theory(profile: Profile) -> Iterator[str]:
    """Sentences that say how loose the bound is, where it is loosest, and what makes it so."""
    for check, name in zip(check_theory(profile), ("Attention alone", "With the residual"), strict=True):
        ratio = check.looseness
        if not np.isfinite(ratio).any():
            yield f"{name}: the bound does not speak of this kind of block."
            continue
        tight, loose = int(np.nanargmin(ratio)), int(np.nanargmax(ratio))
        blind = int(((check.bound.mean >= 1) & (check.gain.mean < 1)).sum())
        layers = check.gain.layers
        yield (
            f"{name}: the bound is {_times(ratio[tight])} (block {layers[tight]}) to {_times(ratio[loose])} (block "
            f"{layers[loose]}) the measured gain, {_times(float(np.nanmedian(ratio)))} at the median; at {blind} of "
            f"{len(ratio)} blocks the high-frequency part shrinks and the bound does not show it."
        )
    if profile.has("smoothing_rate", "attention"):
        rate, bound = profile.curve("smoothing_rate", "attention").mean, check_theory(profile)[0].bound.mean
        weights = float(np.nanmedian(bound / rate))
        yield (
            f"Of the bound for attention alone, the attention map accounts for a factor of {np.nanmedian(rate):.3g} "
            f"and the weights (σ₁ σ₂ H) for {weights:.3g}, both at the median block."
        )


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio < 1000 else f"{ratio:,.0f} times"


def plot_theory(profiles: Sequence[Profile]) -> Figure:
    """A row for each model: measured gain and bound per block, without the residual (left) and with it (right).

    Both are factors by which one attention layer multiplies ||HC||; the dotted line at 1 divides growth from decay, and
    the shaded gap is how loose the bound is.
    """
    checks = [(profile, *check_theory(profile)) for profile in profiles]
    with style():
        figure = Figure(figsize=(7.4, 0.4 + 2.4 * len(checks)), layout="constrained")
        axes = figure.subplots(len(checks), 2, squeeze=False)
        for row, (profile, *pair) in zip(axes, checks, strict=True):
            for axis, check, title in zip(row, pair, ("attention alone", "with its residual"), strict=True):
                layers, gain, bound = check.gain.layers, check.gain, check.bound
                axis.fill_between(layers, gain.mean, bound.mean, color=COLOURS[1], alpha=0.08, linewidth=0)
                axis.plot(layers, bound.mean, color=COLOURS[1], label="bound")
                axis.plot(layers, gain.mean, color=COLOURS[0], label="measured")
                axis.fill_between(layers, gain.low, gain.high, color=COLOURS[0], alpha=0.25, linewidth=0)
                axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
                axis.set_yscale("log")
                plain_ticks(axis.yaxis)
                measured = f"{np.nanmin(gain.mean):.4g} to {np.nanmax(gain.mean):.4g}"
                axis.set_title(f"{profile.label}: {title}\nmeasured {measured}")
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel("gain of ‖HC‖")
        for axis in axes[-1]:
            axis.set_xlabel("block")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure
