"""Turns the states of a forward pass into one number per sample, layer and measure, and keeps nothing else."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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

OF_TOKENS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "token_similarity": measures.token_similarity,
    "high_frequency_ratio": measures.high_frequency_ratio,
    "relative_residual": measures.relative_residual,
    "token_norm": measures.token_norm,
    "outlier_share": measures.outlier_share,
    "absolute_similarity": partial(measures.token_similarity, absolute=True),
}
OF_RANK = {"effective_rank": measures.entropy_rank, "stable_rank": measures.energy_rank}
NEEDS_BRANCHES = {"update_ratio", "residual_gain", "residual_bound"}
NEEDS_MAPS = {
    "attention_entropy",
    "second_singular_value",
    "attention_gain",
    "smoothing_rate",
    "attention_bound",
    "residual_bound",
}


class Key(NamedTuple):
    """Which number: `layer` 0 is after the embedding, `position` is that of `State`, or `attention` for its maps."""

    position: str
    measure: str
    layer: int


Measured = Iterator[tuple[str, Tensor]]
"""Names of measures and their values (batch,)."""


class Recorder:
    """A reducer for `capture` that measures every state.

    Before each batch `layout` is set, and `groups` (batch,) to the group of each sample for the split of similarity.

    Args:
        chosen: names of measures.
        stack: the blocks of the model.
    """

    def __init__(self, chosen: Sequence[str], stack: Stack):
        self.chosen, self.stack = frozenset(chosen), stack
        self.layout = Layout()
        self.keys: list[Key] = []
        self.rows: list[NDArray[np.float32]] = []
        self.split = SplitSums()
        self.groups = torch.empty(0, dtype=torch.int64)
        self._batch: dict[Key, Tensor] = {}
        self._norms: dict[int, tuple[float, float] | None] = {}
        self._reach: dict[int, Tensor] = {}

    def __call__(self, state: State) -> None:
        """Measure one state of the current batch."""
        if state.position in ("stream", "norm"):
            self._keep(state.position, state.layer, self._stream(state.tokens))
            self._add_to_split(state)
        elif state.position == "maps":
            self._keep("attention", state.layer, self._maps(state))
        else:
            self._keep(state.position, state.layer, self._update(state))
            if state.position == "attention":
                self._keep("attention", state.layer, self._residual(state))

    def end_batch(self) -> None:
        """Fetch the numbers of a batch from the device, all at once.

        Raises:
            InputError: where this batch was measured otherwise than those before.
        """
        keys = list(self._batch)
        if self.keys and keys != self.keys:
            raise InputError("batches differ in what can be measured: give images of one size")
        self.keys = keys
        columns = [value.float() for value in self._batch.values()]
        values = torch.stack(columns, dim=1) if columns else torch.empty(len(self.groups), 0)
        self.rows.append(values.cpu().numpy())
        self._batch, self._reach = {}, {}

    def _keep(self, position: str, layer: int, measured: Measured) -> None:
        self._batch |= {Key(position, name, layer): values for name, values in measured}

    def _add_to_split(self, state: State) -> None:
        if self.chosen.intersection(SPLIT):
            layout, tokens = self.layout, state.tokens[:, self.layout.start :]
            positioned = layout.image is not None and layout.in_order
            self.split.add((state.position, state.layer), tokens, layout.mask, self.groups, positioned)

    def _stream(self, state: Tensor) -> Measured:
        tokens, mask = state[:, self.layout.start :], self.layout.mask
        for name in [name for name in OF_TOKENS if name in self.chosen]:
            yield name, OF_TOKENS[name](tokens, mask)
        if "similarity_without_outliers" in self.chosen:
            yield "similarity_without_outliers", measures.token_similarity(tokens, measures.inliers(tokens, mask))
        if ranks := [name for name in OF_RANK if name in self.chosen]:
            values = measures.singular_values(tokens, mask)
            yield from ((name, OF_RANK[name](values)) for name in ranks)
        if self.layout.in_order and {"dirichlet_energy", "spectrum"} & self.chosen:
            grid = self.layout.grid(tokens.shape[1])
            if "dirichlet_energy" in self.chosen:
                yield "dirichlet_energy", measures.dirichlet_energy(tokens, grid, mask)
            if "spectrum" in self.chosen:
                shares = measures.spectrum(tokens, grid, mask)
                yield from ((f"spectrum/{ring}", share) for ring, share in enumerate(shares.unbind(1)))
        yield from self._prefix(state)

    def _prefix(self, state: Tensor) -> Measured:
        """Of the class token and the registers to the tokens that count."""
        layout, first = self.layout, int(self.layout.has_class)
        spans = {"cls_similarity": (0, first), "register_similarity": (first, first + layout.registers)}
        place = torch.arange(state.shape[1], device=state.device).expand(state.shape[:2])
        counted = place >= layout.start if layout.mask is None else layout.mask
        for name, (start, end) in spans.items():
            if name in self.chosen and end > start:
                group = (place >= start) & (place < end)
                yield name, measures.prefix_similarity(state, group, counted & ~group)

    def _update(self, state: State) -> Measured:
        assert state.before is not None
        if "update_ratio" in self.chosen:
            start, mask = self.layout.start, self.layout.mask
            yield "update_ratio", measures.update_ratio(state.tokens[:, start:], state.before[:, start:], mask)

    def _maps(self, state: State) -> Measured:
        """Of all tokens that attention reads, since the bound speaks of them."""
        assert state.attention is not None
        assert state.before is not None
        read, seen = self.layout.read, state.attention
        if "attention_entropy" in self.chosen:
            yield "attention_entropy", measures.attention_entropy(seen.probabilities, read, seen.visible).mean(1)
        if "second_singular_value" in self.chosen:
            yield "second_singular_value", measures.second_singular_value(seen.probabilities, read).mean(1)
        if "attention_gain" in self.chosen:
            yield "attention_gain", measures.high_frequency_gain(state.tokens, state.before, read)
        if self.chosen & {"smoothing_rate", "attention_bound", "residual_bound"}:
            rate = measures.smoothing_rate(seen.logits, read).amax(1)
            bound = self._bound(state.layer, rate, seen.logits.shape[1])
            scale = branch_scale(self.stack.blocks[state.layer - 1])
            self._reach[state.layer] = bound * scale * measures.high_frequency_norm(state.before, read)
            numbers = {"smoothing_rate": rate, "attention_bound": bound}
            yield from ((name, numbers[name]) for name in numbers if name in self.chosen)

    def _bound(self, layer: int, rate: Tensor, heads: int) -> Tensor:
        if layer not in self._norms:
            self._norms[layer] = projection_norms(self.stack.blocks[layer - 1], heads)
        norms = self._norms[layer]
        return torch.full_like(rate, torch.nan) if norms is None else measures.rate_bound(rate, *norms, heads)

    def _residual(self, state: State) -> Measured:
        """Of the stream before and after attention is added to it."""
        assert state.before is not None
        read = self.layout.read
        if "residual_gain" in self.chosen:
            yield "residual_gain", measures.high_frequency_gain(state.before + state.tokens, state.before, read)
        if "residual_bound" in self.chosen and state.layer in self._reach:
            reach = self._reach[state.layer] / measures.high_frequency_norm(state.before, read)
            yield "residual_bound", 1 + reach
