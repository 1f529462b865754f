"""Measures of attention, and the bound of Wang et al. 2022 on what attention leaves of the high-frequency part.

HC[X] = X - 1/n 1 1^T X is what is left of n tokens without their mean. Attention maps are (batch, heads, queries,
keys); `mask` (batch, tokens) is true for tokens that take part, as queries and as keys. Values are per sample and head.
"""

import torch
from torch import Tensor

from .precision import in_fp32


@in_fp32
def attention_entropy(attention: Tensor, mask: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
    """Mean over queries of the entropy of their attention over log n_i, in [0, 1]: 1 is uniform. (batch, heads).

    n_i is the number of keys that query i may read. A query that may read one key alone, such as the first of a causal
    model, has nothing to choose and is left out of the mean.

    Args:
        attention: probabilities (batch, heads, tokens, tokens).
        mask: (batch, tokens), true for tokens that take part.
        visible: (batch, heads, tokens, tokens), true where a query may read a key; without it each reads all.
    """
    mask = _mask(attention, mask)
    allowed = _pairs(mask) if visible is None else _pairs(mask) & visible
    keys = allowed.sum(-1)
    entropy: Tensor = torch.special.entr(attention.masked_fill(~allowed, 0.0)).sum(-1) / keys.log()
    return entropy.where(keys > 1, 0.0).sum(-1) / (keys > 1).sum(-1)  # without any such query 0 / 0


@in_fp32
def second_singular_value(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """The second largest singular value of an attention map (batch, heads, tokens, tokens): (batch, heads)."""
    mask = _mask(attention, mask)
    kept = _keep(attention, mask)
    finite = kept.isfinite().all(dim=(2, 3))
    values = torch.linalg.svdvals(kept.where(finite[..., None, None], 0.0))
    if values.shape[-1] < 2:
        return torch.full_like(values[..., 0], torch.nan)
    second: Tensor = values[..., 1]
    return second.where(finite & (mask.sum(1, keepdim=True) > 1), torch.nan)


@in_fp32
def smoothing_rate(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """sqrt(n e^{2a} / (e^{2a} + n - 1)) with a = max |logit|, in [1, sqrt(n)]: the factor that bounds one softmax.

    ||HC[softmax(P) X]|| <= this factor x ||HC[X]|| for logits |P_ij| <= a: the single-head form of the rate of Wang et
    al. 2022, which is quoted second-hand; a test tries to break it. Where a pair of tokens is masked (a logit of minus
    infinity, as in local attention) it is sqrt(n), which bounds any attention.

    Args:
        logits: what softmax is taken of, scale and masks included, (batch, heads, tokens, tokens).
        mask: (batch, tokens), true for the n tokens that take part.
    """
    mask = _mask(logits, mask)
    largest = _keep(logits, mask).abs().amax((2, 3))
    count = mask.sum(1, keepdim=True)
    return (count / (1 + (count - 1) * torch.exp(-2 * largest))).sqrt()


def rate_bound(rate: Tensor, value_norm: float, output_norm: float, heads: int) -> Tensor:
    """sigma_1 sigma_2 H rate: the most that multi-head attention can multiply ||HC|| by (Wang et al. 2022).

    The formula is quoted second-hand; a test tries to break it. With a residual around the branch it is 1 + this.

    Args:
        rate: the `smoothing_rate` of the worst head.
        value_norm: sigma_1, the largest spectral norm among the heads' value projections.
        output_norm: sigma_2, the same of the output projection.
        heads: H.
    """
    return value_norm * output_norm * heads * rate


@in_fp32
def high_frequency_gain(after: Tensor, before: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC[after]|| / ||HC[before]||, both (batch, tokens, width): below 1 the tokens were drawn together. (batch,)."""
    return high_frequency_norm(after, mask) / high_frequency_norm(before, mask)


@in_fp32
def high_frequency_norm(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC[X]|| of tokens (batch, tokens, width): (batch,)."""
    mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    left_out = ~mask.unsqueeze(-1)
    mean = tokens.masked_fill(left_out, 0.0).sum(1, keepdim=True) / mask.sum(1).view(-1, 1, 1)
    norm: Tensor = torch.linalg.vector_norm((tokens - mean).masked_fill(left_out, 0.0), dim=(1, 2))
    return norm


def _mask(maps: Tensor, mask: Tensor | None) -> Tensor:
    return maps.new_ones((maps.shape[0], maps.shape[-1]), dtype=torch.bool) if mask is None else mask.bool()


def _keep(maps: Tensor, mask: Tensor) -> Tensor:
    """Zeros where the query or the key does not take part."""
    return maps.masked_fill(~_pairs(mask), 0.0)


def _pairs(mask: Tensor) -> Tensor:
    """True where query and key take part: (batch, 1, tokens, tokens)."""
    return mask[:, None, :, None] & mask[:, None, None, :]
