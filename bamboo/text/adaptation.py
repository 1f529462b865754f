"""Position biases that adapt to the data: a small network over the heads, of scores and biases (DAPE).

It gives what is added to scores S and biases B beside them, logits = S + B + f([S; B]); where there is no bias, with
positions `none` and `rotary`, it reads the scores alone. Each layer has one of its own, as in the published code.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.text.positions import over_channels

Adaptive = Literal["none", "dape", "dape_v2"]

WIDTH = 32
"""Hidden units of the network."""


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
        hidden = F.leaky_relu_(over_channels(self.inner, _beside(scores, bias).flatten(2)))
        added: Tensor = over_channels(self.outer, hidden).unflatten(2, scores.shape[2:])
        return added


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
        added: Tensor = self.outer(_seen_alone(F.leaky_relu_(self.inner(pairs)), seen))
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
