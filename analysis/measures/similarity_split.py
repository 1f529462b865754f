"""Similarity split into what all samples share, what a position has, what the tokens of a sample share, and the rest.

With unit tokens u_bi of samples b = 1..B at positions i = 1..N, mu their mean, p_i and c_b the means over b and over i
less mu, and r_bi what is left, the energy splits as in a two-way analysis of variance:

    1 = ||mu||^2 (common) + mean ||p_i||^2 (position) + mean ||c_b||^2 (sample) + mean ||r_bi||^2 (own)

The mean cosine of tokens of one sample is common + sample, up to the cosine of a token with itself. What smoothing adds
is that of a sample beyond that of any two samples: excess = (within - between) / (1 - between). Samples count alike,
whatever their number of tokens; where those differ (texts) or have no fixed place (masked patches), position is part of
own. Sums are in fp64, so that neither the size nor the order of batches matters.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bamboo.errors import InputError

from .masking import count_tokens, in_fp32, inverse_norms, keep

GROUPS = 20
"""Groups of samples that intervals are drawn from; a sample's content decides on its group."""
OF_POSITIONS = ("same_position_similarity", "position_share")
SPLIT = ("between_similarity", "excess_similarity", "common_share", "sample_share", "own_share", *OF_POSITIONS)

Place = tuple[str, int]
Sums = tuple[NDArray[np.float64], NDArray[np.float64] | None]


class Pooled(NamedTuple):
    """A number of all samples together, the ends of its 95 % interval (NaN where there is none), and their count."""

    mean: float
    low: float
    high: float
    samples: int


@in_fp32
def sample_sums(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """What each sample of tokens (batch, tokens, width) adds to the sums of a split, (batch, width + 4) in fp64.

    These are its mean unit token, the square of that, its token similarity, its share of tokens that are not zero, and
    1; or zeros alone where it has fewer than two tokens, or numbers that are not finite.
    """
    wide = torch.float32 if tokens.device.type == "mps" else torch.float64  # GPUs of Apple have no wider type
    inverse, count = inverse_norms(tokens, mask), count_tokens(tokens, mask).to(wide)
    total = torch.bmm(inverse.unsqueeze(1), keep(tokens, mask)).squeeze(1).to(wide)
    energy, square = (inverse > 0).sum(1), total.square().sum(1)
    within = (square - energy) / (count * (count - 1))
    last = torch.stack([square / count**2, within, energy / count, torch.ones_like(count)], dim=1)
    rows = torch.cat([total / count.unsqueeze(1), last], dim=1)
    return rows.where((count > 1).unsqueeze(1) & rows.isfinite().all(1, keepdim=True), 0.0)


def split(sums: Tensor, stacked: Tensor | None = None) -> dict[str, Tensor]:
    """The parts of similarity by name, from the sums of `sample_sums` over samples, (..., width + 4): each (...).

    Args:
        sums: over at least two samples, or all parts but token_similarity are NaN.
        stacked: mean over positions of ||sum_b u_bi||^2, where all samples have the same positions.
    """
    mean, (square, within, energy, count) = sums[..., :-4], sums[..., -4:].unbind(-1)
    within = within / count
    count = count.where(count > 1, torch.nan)
    shared, pairs = mean.square().sum(-1), count * (count - 1)
    between, common = (shared - square) / pairs, shared / count**2
    parts = {
        "token_similarity": within,
        "between_similarity": between,
        "excess_similarity": (within - between) / (1 - between),
        "common_share": common,
        "sample_share": square / count - common,
        "own_share": (energy - square) / count,
    }
    if stacked is not None:
        parts["same_position_similarity"] = (stacked - energy) / pairs
        parts["position_share"] = stacked / count**2 - common
        parts["own_share"] = parts["own_share"] - parts["position_share"]
    return parts


class SplitSums:
    """Adds up, for every place in a model, what the split of its similarity needs: positions x width numbers."""

    def __init__(self) -> None:
        self.sums: dict[Place, Tensor] = {}
        self.stacks: dict[Place, Tensor] = {}

    def add(self, place: Place, tokens: Tensor, mask: Tensor | None, groups: Tensor, positioned: bool) -> None:
        """Take in a batch of tokens (batch, tokens, width) of one place, a position and a layer.

        `groups` (batch,) are those of the samples, below `GROUPS`; with `positioned`, token i has the same place in
        every sample.
        """
        rows = sample_sums(tokens, mask)
        if place not in self.sums:
            self.sums[place] = rows.new_zeros(GROUPS, rows.shape[1])
        self.sums[place].index_add_(0, groups, rows)
        if positioned:
            tokens = tokens.float()
            unit = tokens * inverse_norms(tokens, mask).unsqueeze(-1)
            defined = rows[:, -1:, None] > 0
            total = unit.where(defined, 0).sum(0, dtype=rows.dtype)
            if self.stacks.setdefault(place, torch.zeros_like(total)).shape != total.shape:
                raise InputError("batches differ in their number of patches: give images of one size")
            self.stacks[place] += total

    def state(self) -> dict[Place, Sums]:
        """All sums, off the device."""
        stacks = {place: stack.cpu().numpy() for place, stack in self.stacks.items()}
        return {place: (sums.cpu().numpy(), stacks.get(place)) for place, sums in self.sums.items()}


def united(states: list[dict[Place, Sums]]) -> dict[Place, Sums]:
    """The sums of several processes together."""
    total = {}
    for place in states[0]:
        sums, stacks = zip(*(state[place] for state in states), strict=True)
        stack = None if any(part is None for part in stacks) else np.sum(stacks, axis=0)
        total[place] = np.sum(sums, axis=0), stack
    return total


def pooled(state: dict[Place, Sums]) -> Iterator[tuple[str, int, str, Pooled]]:
    """Position, layer, name and value of every part of every place.

    Intervals are jackknives over groups of samples, which may differ in size (Busing, Meijer and van der Leeden 1999),
    by Student's t; there are none for what needs the sums of positions, which are not kept by group.
    """
    for (position, layer), (sums, stack) in state.items():
        groups = torch.from_numpy(sums)
        total, sizes = groups.sum(0), groups[:, -1]
        stacked = None if stack is None else torch.from_numpy(stack).square().sum(-1).mean()
        parts, without = split(total, stacked), split(total - groups[sizes > 0])
        needs_positions = OF_POSITIONS if stack is None else (*OF_POSITIONS, "own_share")
        for name in [name for name in parts if name in SPLIT]:
            value, reach = float(parts[name]), np.nan
            if name not in needs_positions:
                reach = _jackknife(value, without[name].numpy(), sizes[sizes > 0].numpy())
            yield position, layer, name, Pooled(value, value - reach, value + reach, int(total[-1]))


def _jackknife(whole: float, without: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Half the interval of a number, from what it is without each of the groups and how many samples those have."""
    groups, ratio = len(sizes), sizes.sum() / sizes
    if groups < 2:
        return float("nan")
    pseudo, centre = ratio * whole - (ratio - 1) * without, groups * whole - ((1 - 1 / ratio) * without).sum()
    variance = np.mean((pseudo - centre) ** 2 / (ratio - 1))
    return float(stats.t.ppf(0.975, groups - 1) * np.sqrt(variance))
