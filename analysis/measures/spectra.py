"""Where the tokens' energy lies: over spatial frequencies, and between neighbours."""

import torch
from torch import Tensor

from .masking import count_tokens, in_fp32, keep

TEXT_RINGS = 8


def ring_count(grid: tuple[int, int] | None) -> int:
    """Rings of `spectrum`: for a patch grid one for each whole number of cycles over its shorter side, 8 for text."""
    return TEXT_RINGS if grid is None else max(min(grid) // 2, 1) + 1


@in_fp32
def spectrum(tokens: Tensor, grid: tuple[int, int] | None = None, mask: Tensor | None = None) -> Tensor:
    """Share of the energy ||X||^2 in each ring of frequencies, (batch, rings); ring 0 is the mean token (DC) alone.

    The discrete Fourier transform runs over token positions, for each of the width's features; by Parseval the shares
    sum to 1, and all but ring 0 together are the squared relative residual. For a patch grid, ring k > 0 holds the
    frequencies that round (halves up) to k cycles over the shorter side, the last ring also all beyond. For n tokens
    ring k of 7 holds the frequencies in ((k-1)/14, k/14] cycles per token, so that lengths compare.

    Args:
        tokens: (batch, tokens, width); for images the patches alone, row by row.
        grid: rows and columns of patches; None for a sequence.
        mask: (batch, tokens), true where a token counts, for sequences alone; these tokens are joined up.
    """
    if grid is not None:
        waves = torch.fft.fft2(tokens.unflatten(1, grid), dim=(1, 2)).flatten(1, 2)
        return _shares(waves, _image_rings(grid), ring_count(grid))
    lengths = count_tokens(tokens, mask).long()
    shares = tokens.new_full((len(tokens), TEXT_RINGS), torch.nan)
    for length in set(lengths.tolist()) - {0, 1}:
        chosen = lengths == length
        rows = tokens[chosen]
        if mask is not None:
            rows = rows[mask[chosen].bool()].view(-1, length, tokens.shape[-1])
        shares[chosen] = _shares(torch.fft.fft(rows, dim=1), _text_rings(length), TEXT_RINGS)
    return shares


@in_fp32
def dirichlet_energy(tokens: Tensor, grid: tuple[int, int] | None = None, mask: Tensor | None = None) -> Tensor:
    """sum over neighbours of ||x_i - x_j||^2, over ||X||^2: (batch,). 0 where all tokens are equal.

    Neighbours are patches that share a side, or tokens that follow one another. It is the Dirichlet energy
    1/n sum_{(i,j) in E} ||x_i - x_j||^2 of that graph, made free of scale by the mean squared norm of a token. An edge
    counts where both its ends do. `tokens`, `grid` and `mask` are those of `spectrum`.
    """
    tokens = keep(tokens, mask)
    counted = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    shape = grid or (1, tokens.shape[1])
    field, counted = tokens.unflatten(1, shape), counted.unflatten(1, shape)
    total = sum(_along(field, counted, dim) for dim in (1, 2)) / tokens.square().sum((1, 2))
    return torch.where(count_tokens(tokens, mask) > 1, total, torch.nan)


def _along(field: Tensor, counted: Tensor, dim: int) -> Tensor:
    length = field.shape[dim] - 1
    edges = counted.narrow(dim, 0, length) & counted.narrow(dim, 1, length)
    return (field.diff(dim=dim).square().sum(-1) * edges).sum((1, 2))


def _cycles(count: int) -> Tensor:
    """How many cycles each frequency of a transform over `count` points makes, whichever its sign."""
    place = torch.arange(count)
    return place.minimum(count - place)


def _image_rings(grid: tuple[int, int]) -> Tensor:
    """The ring of each frequency (rows x columns), in whole numbers, so that none falls beside its bound.

    u cycles down and v across are c = m sqrt((u / rows)^2 + (v / columns)^2) cycles over the shorter side m, and c
    rounds to j or more where c^2 >= (j - 1/2)^2.
    """
    rows, columns = grid
    down, across = _cycles(rows)[:, None] * columns, _cycles(columns) * rows
    energy = 4 * min(grid) ** 2 * (down.square() + across.square()).flatten()
    bounds = (2 * torch.arange(1, ring_count(grid)) - 1).square() * (rows * columns) ** 2
    ring = (energy.unsqueeze(-1) >= bounds).sum(-1).clamp_min(1)
    ring[0] = 0
    return ring


def _text_rings(count: int) -> Tensor:
    """The ring of each frequency of `count` tokens: 14 cycles / count, rounded up in whole numbers."""
    return (2 * (TEXT_RINGS - 1) * _cycles(count) + count - 1) // count


def _shares(waves: Tensor, ring: Tensor, rings: int) -> Tensor:
    """The share of each ring in the energy of waves (batch, frequencies, width): (batch, rings)."""
    energy = torch.view_as_real(waves).square().sum((-2, -1))
    total = energy.new_zeros(len(energy), rings).index_add_(1, ring.to(energy.device), energy)
    return total / total.sum(1, keepdim=True)
