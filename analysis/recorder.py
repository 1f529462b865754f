"""Turns the states of a forward pass into one number per sample, layer and measure, and keeps nothing else."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bamboo.errors import InputError

from . import measures
from .architectures import Stack, branch_scale, projection_norms
from .attention_measures import high_frequency_norm
from .captures import State
from .similarity_split import SPLIT, SplitSums


class Key(NamedTuple):
    """Which number: `layer` 0 is after the embedding, `position` is that of `State`, or `attention` for its maps."""

    position: str
    measure: str
    layer: int


@dataclass(frozen=True)
class Layout:
    """Which tokens of a batch are what.

    Args:
        start: tokens before this one do not count (class token, registers).
        mask: (batch, tokens from `start` on), true where a token counts; None where all do.
        read: (batch, tokens), true for all but padding; None where there is no padding.
        has_class: whether token 0 is a class token that does not count.
        registers: tokens that do not count after the class token.
        image: height and width of an image in pixels, None for a text.
        in_order: whether neighbouring tokens are neighbours in the image or text.
    """

    start: int = 0
    mask: Tensor | None = None
    read: Tensor | None = None
    has_class: bool = False
    registers: int = 0
    image: tuple[int, int] | None = None
    in_order: bool = True

    def grid(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of `count` patches, None for a text.

        Raises:
            InputError: where they make no grid over the image, so that what was taken for patches is something else.
        """
        if self.image is None:
            return None
        height, width = self.image
        rows = max(round(math.sqrt(count * height / width)), 1)
        if count % rows:
            raise InputError(
                f"{count} tokens make no grid of patches over images of {height}x{width}: "
                "say with prefix= how many tokens come before the patches"
            )
        return rows, count // rows


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
        for position, measure, values in self._measure(state):
            self._batch[Key(position, measure, state.layer)] = values
        if state.position in ("stream", "norm") and self.chosen.intersection(SPLIT):
            layout = self.layout
            positioned = layout.image is not None and layout.in_order
            place, tokens = (state.position, state.layer), state.tokens[:, layout.start :]
            self.split.add(place, tokens, layout.mask, self.groups, positioned)

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

    def _measure(self, state: State) -> Iterator[tuple[str, str, Tensor]]:
        if state.position in ("stream", "norm"):
            for name, values in self._stream(state.tokens):
                yield state.position, name, values
        elif state.position == "maps":
            for name, values in self._maps(state):
                yield "attention", name, values
        else:
            assert state.before is not None
            start, mask = self.layout.start, self.layout.mask
            if "update_ratio" in self.chosen:
                ratio = measures.update_ratio(state.tokens[:, start:], state.before[:, start:], mask)
                yield state.position, "update_ratio", ratio
            if state.position == "attention":
                for name, values in self._residual(state):
                    yield "attention", name, values

    def _stream(self, state: Tensor) -> Iterator[tuple[str, Tensor]]:
        layout, tokens, mask = self.layout, state[:, self.layout.start :], self.layout.mask
        for name, measure in PLAIN.items():
            if name in self.chosen:
                yield name, measure(tokens, mask)
        if "similarity_without_outliers" in self.chosen:
            yield "similarity_without_outliers", measures.token_similarity(tokens, measures.inliers(tokens, mask))
        if "absolute_similarity" in self.chosen:
            yield "absolute_similarity", measures.token_similarity(tokens, mask, absolute=True)
        if {"effective_rank", "stable_rank"} & self.chosen:
            values = measures.singular_values(tokens, mask)
            ranks = {"effective_rank": measures.entropy_rank(values), "stable_rank": measures.energy_rank(values)}
            yield from ((name, rank) for name, rank in ranks.items() if name in self.chosen)
        if layout.in_order and {"dirichlet_energy", "spectrum"} & self.chosen:
            yield from self._spatial(tokens)
        yield from self._prefix(state)

    def _spatial(self, tokens: Tensor) -> Iterator[tuple[str, Tensor]]:
        grid, mask = self.layout.grid(tokens.shape[1]), self.layout.mask
        if "dirichlet_energy" in self.chosen:
            yield "dirichlet_energy", measures.dirichlet_energy(tokens, grid, mask)
        if "spectrum" in self.chosen:
            shares = measures.spectrum(tokens, grid, mask)
            yield from ((f"spectrum/{ring}", share) for ring, share in enumerate(shares.unbind(1)))

    def _prefix(self, state: Tensor) -> Iterator[tuple[str, Tensor]]:
        first = int(self.layout.has_class)
        spans = {"cls_similarity": (0, first), "register_similarity": (first, first + self.layout.registers)}
        for name, (start, end) in spans.items():
            if name in self.chosen and end > start:
                yield name, measures.prefix_similarity(state, *self._groups(state, start, end))

    def _groups(self, state: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        prefix = state.new_zeros(state.shape[:2], dtype=torch.bool)
        counted = prefix.clone()
        prefix[:, start:end] = True
        counted[:, self.layout.start :] = True if self.layout.mask is None else self.layout.mask
        return prefix, counted & ~prefix

    def _maps(self, state: State) -> Iterator[tuple[str, Tensor]]:
        """Of all tokens that attention reads, since the bound speaks of them."""
        assert state.attention is not None
        assert state.before is not None
        read, seen = self.layout.read, state.attention
        if "attention_entropy" in self.chosen:
            yield "attention_entropy", measures.attention_entropy(seen.probabilities, read, seen.visible).mean(1)
        if "second_singular_value" in self.chosen:
            yield "second_singular_value", measures.second_singular_value(seen.probabilities, read).mean(1)
        if not {"smoothing_rate", *BOUNDS} & self.chosen:
            return
        rate = measures.smoothing_rate(seen.logits, read).amax(1)
        bound = self._bound(state.layer, rate, seen.logits.shape[1])
        before = high_frequency_norm(state.before, read)
        self._reach[state.layer] = bound * branch_scale(self.stack.blocks[state.layer - 1]) * before
        gain = high_frequency_norm(state.tokens, read) / before
        found = {"smoothing_rate": rate, "attention_bound": bound, "attention_gain": gain}
        yield from ((name, values) for name, values in found.items() if name in self.chosen)

    def _bound(self, layer: int, rate: Tensor, heads: int) -> Tensor:
        if layer not in self._norms:
            self._norms[layer] = projection_norms(self.stack.blocks[layer - 1], heads)
        norms = self._norms[layer]
        return torch.full_like(rate, torch.nan) if norms is None else measures.rate_bound(rate, *norms, heads)

    def _residual(self, state: State) -> Iterator[tuple[str, Tensor]]:
        if state.layer not in self._reach or state.before is None:
            return
        before = high_frequency_norm(state.before, self.layout.read)
        after = high_frequency_norm(state.before + state.tokens, self.layout.read)
        found = {"residual_gain": after / before, "residual_bound": 1 + self._reach[state.layer] / before}
        yield from ((name, values) for name, values in found.items() if name in self.chosen)


PLAIN = {
    name: getattr(measures, name)
    for name in ("token_similarity", "high_frequency_ratio", "relative_residual", "token_norm", "outlier_share")
}
BOUNDS = ("attention_bound", "attention_gain", "residual_bound", "residual_gain")
BRANCHES = ("update_ratio", "residual_bound", "residual_gain")
MAPS = ("attention_entropy", "second_singular_value", "smoothing_rate", *BOUNDS)
