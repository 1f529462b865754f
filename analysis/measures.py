"""How alike the tokens of a sample are: pure functions of token matrices (batch, tokens, width), one value per sample.

`mask` (batch, tokens) is true where a token counts; without it all do. Everything is computed in fp32, also under
autocast, whatever the precision of the tokens. Where a measure is undefined (fewer than two tokens) its value is NaN,
and a NaN among the tokens that count gives a NaN. Notation: X has n tokens x_i that count, `mean` is their mean token,
x^_i = x_i / ||x_i||, and ||.|| of a matrix is the Frobenius norm.
"""

from typing import cast

import torch
from torch import Tensor

from .attention_measures import (
    attention_entropy,
    high_frequency_gain,
    rate_bound,
    second_singular_value,
    smoothing_rate,
)
from .precision import in_fp32
from .spectra import dirichlet_energy, ring_count, spectrum

__all__ = [
    "attention_entropy",
    "dirichlet_energy",
    "effective_rank",
    "energy_rank",
    "entropy_rank",
    "high_frequency_gain",
    "high_frequency_ratio",
    "inliers",
    "outlier_share",
    "prefix_similarity",
    "rate_bound",
    "relative_residual",
    "ring_count",
    "second_singular_value",
    "singular_values",
    "smoothing_rate",
    "spectrum",
    "stable_rank",
    "token_norm",
    "token_similarity",
    "update_ratio",
]

OUTLIER = 3.0  # times the median norm: beyond it a token counts as a high-norm artifact


@in_fp32
def token_similarity(tokens: Tensor, mask: Tensor | None = None, absolute: bool = False) -> Tensor:
    """Mean cosine of all pairs of different tokens: 1/(n(n-1)) sum_{i != j} x^_i . x^_j, in [-1/(n-1), 1].

    Computed as (||sum_i x^_i||^2 - n) / (n (n - 1)), which needs O(n width) operations and no n x n matrix. A token
    that is exactly zero has cosine 0 with every other.

    Args:
        tokens: (batch, tokens, width).
        mask: (batch, tokens), true where a token counts.
        absolute: the mean of |cosine| instead, which some papers report; it takes O(n^2 width) operations.
    """
    inverse, kept = _inverse_norms(tokens, mask), _keep(tokens, mask)
    count = _count(tokens, mask)
    pairs = count * (count - 1)
    if absolute:
        unit = kept * inverse.unsqueeze(-1)
        total = (unit @ unit.mT).abs().sum((1, 2))
    else:
        total = torch.bmm(inverse.unsqueeze(1), kept).square().sum((1, 2))
    nonzero = (inverse > 0).sum(1)  # each contributes its cosine of 1 with itself
    return _where_defined((total - nonzero) / pairs, pairs > 0)


@in_fp32
def prefix_similarity(tokens: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    """Mean cosine between the tokens of one group and those of another, such as the class token and the patches.

    Args:
        tokens: (batch, tokens, width).
        prefix: (batch, tokens), true for the first group.
        mask: (batch, tokens), true for the second group; the groups must not overlap.
    """
    first = torch.bmm(_inverse_norms(tokens, prefix).unsqueeze(1), _keep(tokens, prefix))
    second = torch.bmm(_inverse_norms(tokens, mask).unsqueeze(1), _keep(tokens, mask))
    pairs = prefix.sum(1) * mask.sum(1)
    return _where_defined((first * second).sum((1, 2)) / pairs, pairs > 0)


@in_fp32
def high_frequency_ratio(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC|| / ||DC|| = ||X - mean|| / (sqrt(n) ||mean||), from Wang et al. 2022 (DC = 1/n 1 1^T X, HC = X - DC)."""
    mean, residual = _split(tokens, mask)
    count = _count(tokens, mask)
    return _where_defined(_norm(residual) / (count.sqrt() * _norm(mean)), count > 1)


@in_fp32
def relative_residual(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||X - mean|| / ||X||, in [0, 1]: the relative residual of Dong et al. 2021 in its Frobenius form."""
    _, residual = _split(tokens, mask)
    return _where_defined(_norm(residual) / _norm(_keep(tokens, mask)), _count(tokens, mask) > 1)


@in_fp32
def token_norm(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean Euclidean norm of a token."""
    count = _count(tokens, mask)
    return _where_defined(_norms(_keep(tokens, mask)).sum(1) / count, count > 0)


@in_fp32
def inliers(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mask (batch, tokens) less high-norm outliers: tokens of more than 3 times the median norm of their sample.

    Such tokens appear in large ViTs (Darcet et al. 2024) and distort cosines. The factor 3 is this package's own
    choice. Of an even number of tokens the lower median is taken.
    """
    counted = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    norms = _norms(_keep(tokens, mask))
    median = norms.masked_fill(~counted, torch.nan).nanmedian(dim=1, keepdim=True).values
    return counted & ~(norms > OUTLIER * median)


@in_fp32
def outlier_share(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of tokens that `inliers` leaves out."""
    count, norms = _count(tokens, mask), _norms(_keep(tokens, mask))
    share = 1 - inliers(tokens, mask).sum(1) / count
    return _where_defined(share, (count > 0) & norms.isfinite().all(1))


@in_fp32
def singular_values(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Singular values (batch, min(tokens, width)) of X, largest first; tokens that do not count only add zeros.

    They are roots of the eigenvalues of the smaller Gram matrix, in fp64: about twice as fast as an SVD in fp32 and no
    less exact.
    """
    rows = _keep(tokens, mask).double()
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    finite = gram.isfinite().all(dim=(1, 2), keepdim=True)
    values: Tensor = torch.linalg.eigvalsh(gram.where(finite, 0.0)).clamp_min(0).sqrt().flip(-1)
    return values.where(finite.squeeze(-1), torch.nan).to(tokens.dtype)


@in_fp32
def effective_rank(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(-sum_k p_k log p_k) with p_k = s_k / sum s, in [1, rank] (Roy and Vetterli 2007)."""
    return entropy_rank(singular_values(tokens, mask))


@in_fp32
def stable_rank(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||X||^2 / s_1^2, in [1, rank]."""
    return energy_rank(singular_values(tokens, mask))


def entropy_rank(values: Tensor) -> Tensor:
    """The effective rank that singular values (..., count) give: (...)."""
    entropy: Tensor = torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1)
    return entropy.exp()


def energy_rank(values: Tensor) -> Tensor:
    """The stable rank that singular values (..., count), largest first, give: (...)."""
    return values.square().sum(-1) / values[..., 0].square()


@in_fp32
def update_ratio(update: Tensor, stream: Tensor, mask: Tensor | None = None) -> Tensor:
    """||U|| / ||X||: the norm of what a branch adds over that of the stream that it is added to.

    Both are (batch, tokens, width).
    """
    return _norm(_keep(update, mask)) / _norm(_keep(stream, mask))


def _count(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """n of each sample: (batch,)."""
    return tokens.new_full((len(tokens),), tokens.shape[1]) if mask is None else mask.sum(1).to(tokens.dtype)


def _keep(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in place of tokens that do not count; a product with the mask would let a NaN through."""
    return tokens if mask is None else tokens.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def _norm(tokens: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(tokens, dim=(1, 2)))


def _norms(tokens: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(tokens, dim=-1))


def _inverse_norms(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """1 / ||x_i||, and 0 for tokens that are zero or do not count: (batch, tokens)."""
    norms = _norms(tokens)
    left_out = norms == 0 if mask is None else (norms == 0) | ~mask.bool()
    return (1 / norms).masked_fill(left_out, 0.0)


def _split(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean token (batch, 1, width) and what is left of each token without it (batch, tokens, width)."""
    mean = _keep(tokens, mask).sum(1, keepdim=True) / _count(tokens, mask).view(-1, 1, 1)
    return mean, _keep(tokens - mean, mask)


def _where_defined(values: Tensor, defined: Tensor) -> Tensor:
    return values.where(defined, torch.nan)
