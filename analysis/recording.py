"""Turns the states of a forward pass into one number per sample, layer and measure, and keeps nothing else."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bamboo.errors import InputError

from . import measures
from .architectures import Stack
from .captures import State
from .inputs import Layout
from .measures.bound import branch_scale, projection_norms
from .measures.similarity_split import SPLIT, SplitSums

NEEDS_BRANCHES = {"update_ratio", "residual_gain", "residual_bound"}
BOUND = {"smoothing_rate", "attention_bound", "residual_bound"}
NEEDS_MAPS = BOUND | {"attention_entropy", "second_singular_value", "attention_gain"}


Measures = dict[str, Callable[[], Tensor]]
"""By name, what gives the values (batch,) of a measure if it is chosen."""


class Key(NamedTuple):
    """Which number: `layer` 0 is after the embedding, `position` is that of `State`, or `attention` for its maps."""

    position: str
    measure: str
    layer: int


class Recorder:
    """A reducer for `capture` that measures every state.

    Before each batch `layout` is set, and `groups` (batch,) to the group of each sample for the split of similarity.
    """

    def __init__(self, chosen: Sequence[str], stack: Stack):
        self.chosen, self.stack = frozenset(chosen), stack
        self.layout = Layout()
        self.groups = torch.empty(0, dtype=torch.int64)
        self.keys: list[Key] = []
        self.rows: list[NDArray[np.float32]] = []
        self.split = SplitSums()
        self._batch: dict[Key, Tensor] = {}
        self._reach: dict[int, Tensor] = {}
        self._norms = cache(lambda layer, heads: projection_norms(stack.blocks[layer - 1], heads))

    def __call__(self, state: State) -> None:
        """Measure one state of the current batch."""
        if state.position in ("stream", "norm"):
            self._keep(state, self._of_stream(state.tokens))
            if self.chosen.intersection(SPLIT):
                layout, place = self.layout, (state.position, state.layer)
                positioned = layout.image is not None and layout.in_order
                self.split.add(place, state.tokens[:, layout.start :], layout.mask, self.groups, positioned)
        elif state.position == "maps":
            self._keep(state, self._of_maps(state), "attention")
        else:
            self._keep(state, self._of_branch(state))

    def end_batch(self) -> None:
        """Fetch the numbers of a batch from the device, all at once."""
        keys = list(self._batch)
        if self.keys and keys != self.keys:
            raise InputError("batches differ in what can be measured: give images of one size")
        self.keys = keys
        columns = [values.float() for values in self._batch.values()]
        table = torch.stack(columns, dim=1) if columns else torch.empty(len(self.groups), 0)
        self.rows.append(table.cpu().numpy())
        self._batch, self._reach = {}, {}

    def _keep(self, state: State, measured: Measures, position: str | None = None) -> None:
        for name, measure in measured.items():
            if name.partition("/")[0] in self.chosen:
                self._batch[Key(position or state.position, name, state.layer)] = measure()

    def _of_stream(self, state: Tensor) -> Measures:
        layout, mask, tokens = self.layout, self.layout.mask, state[:, self.layout.start :]
        singular_values = cache(lambda: measures.singular_values(tokens, mask))
        available: Measures = {
            "token_similarity": lambda: measures.token_similarity(tokens, mask),
            "high_frequency_ratio": lambda: measures.high_frequency_ratio(tokens, mask),
            "relative_residual": lambda: measures.relative_residual(tokens, mask),
            "token_norm": lambda: measures.token_norm(tokens, mask),
            "outlier_share": lambda: measures.outlier_share(tokens, mask),
            "similarity_without_outliers": lambda: measures.token_similarity(tokens, measures.inliers(tokens, mask)),
            "absolute_similarity": lambda: measures.token_similarity(tokens, mask, absolute=True),
            "effective_rank": lambda: measures.entropy_rank(singular_values()),
            "stable_rank": lambda: measures.energy_rank(singular_values()),
        }
        if layout.in_order and {"dirichlet_energy", "spectrum"} & self.chosen:
            grid = layout.grid(tokens.shape[1])
            available["dirichlet_energy"] = lambda: measures.dirichlet_energy(tokens, grid, mask)
            rings = cache(lambda: measures.spectrum(tokens, grid, mask).unbind(1))
            for ring in range(measures.ring_count(grid)):
                available[f"spectrum/{ring}"] = partial(lambda index: rings()[index], ring)
        return available | self._of_prefix(state)

    def _of_prefix(self, state: Tensor) -> Measures:
        """Of the class token and of the registers to the tokens that count."""
        layout, first = self.layout, int(self.layout.has_class)
        place = torch.arange(state.shape[1], device=state.device).expand(state.shape[:2])
        counted = place >= layout.start if layout.mask is None else layout.mask

        def similarity(start: int, end: int) -> Tensor:
            group = (place >= start) & (place < end)
            return measures.prefix_similarity(state, group, counted & ~group)

        available: Measures = {}
        if layout.has_class:
            available["cls_similarity"] = lambda: similarity(0, first)
        if layout.registers:
            available["register_similarity"] = lambda: similarity(first, first + layout.registers)
        return available

    def _of_branch(self, state: State) -> Measures:
        assert state.before is not None
        update, before, read = state.tokens, state.before, self.layout.read
        start, mask = self.layout.start, self.layout.mask
        available: Measures = {
            "update_ratio": lambda: measures.update_ratio(update[:, start:], before[:, start:], mask)
        }
        if state.position == "attention":
            available["residual_gain"] = lambda: measures.high_frequency_gain(before + update, before, read)
            if state.layer in self._reach:
                reach = self._reach[state.layer]
                available["residual_bound"] = lambda: 1 + reach / measures.high_frequency_norm(before, read)
        return available

    def _of_maps(self, state: State) -> Measures:
        """Of all tokens that attention reads, since the bound speaks of them."""
        assert state.attention is not None
        assert state.before is not None
        tokens, before, read, seen = state.tokens, state.before, self.layout.read, state.attention
        available: Measures = {
            "attention_entropy": lambda: measures.attention_entropy(seen.probabilities, read, seen.visible).mean(1),
            "second_singular_value": lambda: measures.second_singular_value(seen.probabilities, read).mean(1),
            "attention_gain": lambda: measures.high_frequency_gain(tokens, before, read),
        }
        if self.chosen & BOUND:
            rate, heads = measures.smoothing_rate(seen.logits, read).amax(1), seen.logits.shape[1]
            norms = self._norms(state.layer, heads)
            bound = torch.full_like(rate, torch.nan) if norms is None else measures.rate_bound(rate, *norms, heads)
            scale = branch_scale(self.stack.blocks[state.layer - 1])
            self._reach[state.layer] = bound * scale * measures.high_frequency_norm(before, read)
            available |= {"smoothing_rate": lambda: rate, "attention_bound": lambda: bound}
        return available
