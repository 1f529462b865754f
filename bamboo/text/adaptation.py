"""Position biases that adapt to the data: a small network over the heads, of scores and biases (DAPE).

It gives what is added to scores S and biases B beside them, logits = S + B + f([S; B]); where there is no bias, with
positions `none` and `rotary`, it reads the scores alone. Each layer has one of its own, as in the published code.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bamboo.text.positions import mix

Adaptive = Literal["none", "dape", "dape_v2"]

WIDTH = 32
"""Hidden units of the network."""

SLOPE = 0.01
"""Of LeakyReLU below zero."""

CACHED_PAIRS, PAIRS_ON_GPU = 1 << 14, 1 << 22
"""Pairs of a query and a key, over a batch, that `dape` has the hidden units of at a time, on a CPU and on a GPU."""


class Dape(nn.Module):
    """Linear(2 heads, 32), LeakyReLU, Linear(32, heads) at every pair of query and key (Zheng et al. 2024)."""

    def __init__(self, heads: int, has_bias: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(heads * (1 + has_bias), WIDTH), nn.Linear(WIDTH, heads)

    def forward(self, scores: Tensor, bias: Tensor | None, seen: Tensor | None) -> Tensor:
        """What is added to the logits (B, heads, queries, keys).

        Args:
            scores: of queries and keys, scaled (B, heads, queries, keys).
            bias: of the same shape, or without its batch.
            seen: is not looked at: no pair reads another, so what is not seen can be masked afterwards.
        """
        bias = bias[None] if bias is not None and bias.ndim == 3 else bias
        tensors = bias, self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias
        same = [tensor if tensor is None else tensor.to(scores.dtype) for tensor in tensors]
        added: Tensor = _Pairwise.apply(scores, *same)
        return added


class _Pairwise(torch.autograd.Function):
    """The network of `Dape` over some queries at a time, whose hidden units the backward pass computes again.

    By autograd each part would leave gradients of the whole behind, which takes longer than the network does.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, bias: Tensor | None, inner: Tensor, first: Tensor, outer: Tensor, second: Tensor
    ) -> Tensor:
        """What is added to the logits, of matrices `inner` and `outer` and the vectors that follow them."""
        ctx.save_for_backward(scores, bias, inner, first, outer)
        added = torch.empty_like(scores)
        for rows in _rows(scores):
            _, hidden = _read(scores, bias, inner, first, rows)
            added[:, :, rows] = mix(outer, second, hidden).view_as(added[:, :, rows])
        return added

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all that `forward` takes."""
        scores, bias, inner, first, outer = ctx.saved_tensors
        batch, heads = scores.shape[:2]
        of_scores, of_bias = torch.empty_like(scores), None if bias is None else torch.empty_like(bias)
        of_inner, of_first, of_outer = (torch.zeros_like(tensor) for tensor in (inner, first, outer))
        for rows in _rows(scores):
            read, hidden = _read(scores, bias, inner, first, rows)
            above = gradient[:, :, rows].flatten(2)
            of_outer += torch.bmm(above, hidden.mT).sum(0)
            below = torch.bmm(outer.T.expand(batch, -1, -1), above)
            below = below.where(hidden > 0, SLOPE * below)  # LeakyReLU keeps the sign of what went in
            of_inner += torch.bmm(below, read.mT).sum(0)
            of_first += below.sum((0, 2))
            of_read = torch.bmm(inner.T.expand(batch, -1, -1), below).unflatten(2, scores[:, :, rows].shape[2:])
            of_scores[:, :, rows] = of_read[:, :heads]
            if of_bias is not None:
                of_bias[:, :, rows] = of_read[:, heads:].sum_to_size(of_bias[:, :, rows].shape)
        return of_scores, of_bias, of_inner, of_first, of_outer, gradient.sum((0, 2, 3))


def _rows(scores: Tensor) -> Iterator[slice]:
    """Queries of which as many are taken at a time as fit the caches of a CPU; a GPU takes more."""
    pairs = CACHED_PAIRS if scores.device.type == "cpu" else PAIRS_ON_GPU
    count = max(pairs // (len(scores) * scores.shape[3]), 1)
    return (slice(start, start + count) for start in range(0, scores.shape[2], count))


def _read(scores: Tensor, bias: Tensor | None, inner: Tensor, first: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """What the network reads of some queries (B, H or 2 H, pairs), and its hidden units (B, 32, pairs)."""
    read = _beside(scores[:, :, rows], None if bias is None else bias[:, :, rows]).flatten(2)
    return read, F.leaky_relu_(mix(inner, first, read), SLOPE)


class DapeV2(nn.Module):
    """Two convolutions of kernel 3 over the keys, heads as channels: 2 heads, 32, heads (Zheng et al. 2024, DAPE V2).

    What a query does not see, keys of the future, of other documents and padding, is zero before each of them. So
    nothing leaks from there, and a text is read alike alone, in a block, padded, and with a cache of keys. (The
    published code masks before the first alone: the last key then reads hidden units of the next, which a cache lacks.)
    """

    def __init__(self, heads: int, has_bias: bool) -> None:
        super().__init__()
        self.inner = nn.Conv2d(heads * (1 + has_bias), WIDTH, (1, 3), padding=(0, 1))
        self.outer = nn.Conv2d(WIDTH, heads, (1, 3), padding=(0, 1))

    def forward(self, scores: Tensor, bias: Tensor | None, seen: Tensor | None) -> Tensor:
        """As of `Dape`; `seen` says which keys a query sees, (queries, keys) or (B, 1, queries, keys), or all."""
        pairs = _seen_alone(_beside(scores, bias), seen).contiguous(memory_format=torch.channels_last)
        added: Tensor = self.outer(_seen_alone(F.leaky_relu_(self.inner(pairs), SLOPE), seen))
        return added


def _seen_alone(channels: Tensor, seen: Tensor | None) -> Tensor:
    """Channels (B, any, queries, keys) that are zero where a query does not see a key."""
    return channels if seen is None else channels.masked_fill(~seen, 0.0)


def _beside(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Scores, and behind their heads those of the bias (B, 2 heads, queries, keys)."""
    return scores if bias is None else torch.cat([scores, bias.to(scores.dtype).expand_as(scores)], 1)


def build_adaptation(adaptive: Adaptive, heads: int, has_bias: bool) -> Dape | DapeV2 | None:
    """The network of a kind; None for none.

    Args:
        adaptive: the kind.
        heads: of attention.
        has_bias: whether it reads a bias beside the scores.
    """
    kinds: dict[str, type[Dape] | type[DapeV2]] = {"dape": Dape, "dape_v2": DapeV2}
    return kinds[adaptive](heads, has_bias) if adaptive in kinds else None
