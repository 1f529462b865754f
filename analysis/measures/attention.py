"""Measures of attention maps (batch, heads, queries, keys): one value per sample and head.

`mask` (batch, tokens) is true for tokens that take part, as queries and as keys.
"""

import torch
from torch import Tensor

from .masking import in_fp32


@in_fp32
def attention_entropy(attention: Tensor, mask: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
    """Mean over queries of the entropy of their attention over log n_i, in [0, 1]: 1 is uniform. (batch, heads).

    n_i is the number of keys that query i may read: those where `visible` (batch, heads, tokens, tokens) is true, by
    default all. A query that may read one key alone, such as the first of a causal model, has nothing to choose and is
    left out of the mean. A map with a negative number is no distribution, and has NaN.
    """
    allowed = pairs(attention, mask) if visible is None else pairs(attention, mask) & visible
    keys = allowed.sum(-1)
    attention = attention.masked_fill(~allowed, 0.0)
    entropy: Tensor = torch.special.entr(attention.where(attention >= 0, torch.nan)).sum(-1) / keys.log()
    return entropy.where(keys > 1, 0.0).sum(-1) / (keys > 1).sum(-1)  # without any such query 0 / 0


@in_fp32
def second_singular_value(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """The second largest singular value of an attention map (batch, heads, tokens, tokens): (batch, heads).

    A map to fewer keys than there are queries takes tokens to no tokens, and has NaN.
    """
    if attention.shape[-1] != attention.shape[-2]:
        return attention.new_full(attention.shape[:2], torch.nan)
    allowed = pairs(attention, mask)
    kept = attention.masked_fill(~allowed, 0.0)
    finite = kept.isfinite().all(dim=(2, 3))
    values = torch.linalg.svdvals(kept.where(finite[..., None, None], 0.0))
    if values.shape[-1] < 2:
        return torch.full_like(values[..., 0], torch.nan)
    second: Tensor = values[..., 1]
    return second.where(finite & (allowed.sum((2, 3)) > 1), torch.nan)


def pairs(maps: Tensor, mask: Tensor | None) -> Tensor:
    """True where query and key take part: (batch, 1, tokens, tokens)."""
    if mask is None:
        return maps.new_ones((len(maps), 1, *maps.shape[2:]), dtype=torch.bool)
    return mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
