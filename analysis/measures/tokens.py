"""Similarity, spread and rank of the tokens of a sample, each from one token matrix."""

from typing import cast

import torch
from torch import Tensor

from .masking import count_tokens, in_fp32, inverse_norms, keep, norms

OUTLIER = 3.0  # times the median norm: beyond it a token counts as a high-norm artifact


@in_fp32
def token_similarity(tokens: Tensor, mask: Tensor | None = None, absolute: bool = False) -> Tensor:
    """Mean cosine of all pairs of different tokens: 1/(n(n-1)) sum_{i != j} x^_i . x^_j, in [-1/(n-1), 1].

    Computed as (||sum_i x^_i||^2 - n) / (n (n - 1)), which needs O(n width) operations and no n x n matrix. A token
    that is exactly zero has cosine 0 with every other. `absolute` gives the mean of |cosine|, which some papers report;
    it takes O(n^2 width) operations.
    """
    inverse, kept = inverse_norms(tokens, mask), keep(tokens, mask)
    count = count_tokens(tokens, mask)
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

    Both groups are (batch, tokens), true for their tokens, and must not overlap.
    """
    first = torch.bmm(inverse_norms(tokens, prefix).unsqueeze(1), keep(tokens, prefix))
    second = torch.bmm(inverse_norms(tokens, mask).unsqueeze(1), keep(tokens, mask))
    pairs = prefix.sum(1) * mask.sum(1)
    return _where_defined((first * second).sum((1, 2)) / pairs, pairs > 0)


@in_fp32
def high_frequency_norm(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC[X]||, HC[X] = X - 1/n 1 1^T X: what is left of the tokens without their mean (Wang et al. 2022)."""
    return _norm(_split(tokens, mask)[1])


def high_frequency_gain(after: Tensor, before: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC[after]|| / ||HC[before]||: below 1 the tokens were drawn together."""
    return high_frequency_norm(after, mask) / high_frequency_norm(before, mask)


@in_fp32
def high_frequency_ratio(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||HC|| / ||DC|| = ||X - mean|| / (sqrt(n) ||mean||), from Wang et al. 2022 (DC = 1/n 1 1^T X, HC = X - DC)."""
    mean, residual = _split(tokens, mask)
    count = count_tokens(tokens, mask)
    return _where_defined(_norm(residual) / (count.sqrt() * _norm(mean)), count > 1)


@in_fp32
def relative_residual(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """||X - mean|| / ||X||, in [0, 1]: the relative residual of Dong et al. 2021 in its Frobenius form."""
    _, residual = _split(tokens, mask)
    return _where_defined(_norm(residual) / _norm(keep(tokens, mask)), count_tokens(tokens, mask) > 1)


@in_fp32
def token_norm(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean Euclidean norm of a token."""
    count = count_tokens(tokens, mask)
    return _where_defined(norms(keep(tokens, mask)).sum(1) / count, count > 0)


@in_fp32
def inliers(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mask (batch, tokens) less high-norm outliers: tokens of more than 3 times the median norm of their sample.

    Such tokens appear in large ViTs (Darcet et al. 2024) and distort cosines. The factor 3 is this package's own
    choice. Of an even number of tokens the lower median is taken.
    """
    counted = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    lengths = norms(keep(tokens, mask))
    median = lengths.masked_fill(~counted, torch.nan).nanmedian(dim=1, keepdim=True).values
    return counted & ~(lengths > OUTLIER * median)


@in_fp32
def outlier_share(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of tokens that `inliers` leaves out."""
    count, lengths = count_tokens(tokens, mask), norms(keep(tokens, mask))
    share = 1 - inliers(tokens, mask).sum(1) / count
    return _where_defined(share, (count > 0) & lengths.isfinite().all(1))


@in_fp32
def singular_values(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Singular values (batch, min(tokens, width)) of X, largest first; tokens that do not count only add zeros.

    They are roots of the eigenvalues of the smaller Gram matrix, in fp64: about twice as fast as an SVD in fp32 and no
    less exact.
    """
    rows = keep(tokens, mask).double()
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    finite = gram.isfinite().all(dim=(1, 2), keepdim=True)
    values: Tensor = torch.linalg.eigvalsh(gram.where(finite, 0.0)).clamp_min(0).sqrt().flip(-1)
    return values.where(finite.squeeze(-1), torch.nan).to(tokens.dtype)


def effective_rank(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(-sum_k p_k log p_k) with p_k = s_k / sum s, in [1, rank] (Roy and Vetterli 2007)."""
    return entropy_rank(singular_values(tokens, mask))


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
    """||U|| / ||X||: the norm of what a branch adds over that of the stream that it is added to."""
    return _norm(keep(update, mask)) / _norm(keep(stream, mask))


def _norm(tokens: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(tokens, dim=(1, 2)))


def _split(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean token (batch, 1, width) and what is left of each token without it (batch, tokens, width)."""
    mean = keep(tokens, mask).sum(1, keepdim=True) / count_tokens(tokens, mask).view(-1, 1, 1)
    return mean, keep(tokens - mean, mask)


def _where_defined(values: Tensor, defined: Tensor) -> Tensor:
    return values.where(defined, torch.nan)
