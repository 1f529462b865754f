"""Where the tokens' energy lies: over spatial frequencies, and between neighbours."""

import torch
from torch import Tensor

from .precision import in_fp32

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
        return _of_image(tokens, grid)
    if mask is None:
        return _of_sequence(tokens)
    lengths = mask.sum(1)
    shares = tokens.new_full((len(tokens), TEXT_RINGS), torch.nan)
    for length in set(lengths.tolist()):
        if length > 1:
            chosen = lengths == length
            rows = tokens[chosen][mask[chosen].bool()].view(-1, length, tokens.shape[-1])
            shares[chosen] = _of_sequence(rows)
    return shares


@in_fp32
def dirichlet_energy(tokens: Tensor, grid: tuple[int, int] | None = None, mask: Tensor | None = None) -> Tensor:
    """sum over neighbours of ||x_i - x_j||^2, over ||X||^2: (batch,). 0 where all tokens are equal.

    Neighbours are patches that share a side, or tokens that follow one another. It is the Dirichlet energy
    1/n sum_{(i,j) in E} ||x_i - x_j||^2 of that graph, made free of scale by the mean squared norm of a token.

    Args:
        tokens: (batch, tokens, width); for images the patches alone, row by row.
        grid: rows and columns of patches; None for a sequence.
        mask: (batch, tokens), true where a token counts; an edge counts where both its ends do.
    """
    if mask is not None:
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
    counted = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    rows, columns = grid or (1, tokens.shape[1])
    field, counted = tokens.reshape(-1, rows, columns, tokens.shape[-1]), counted.view(-1, rows, columns)
    total = sum(_along(field, counted, dim) for dim in (1, 2)) / tokens.square().sum((1, 2))
    return torch.where(counted.sum((1, 2)) > 1, total, torch.nan)


def _along(field: Tensor, counted: Tensor, dim: int) -> Tensor:
    length = field.shape[dim] - 1
    edges = counted.narrow(dim, 0, length) & counted.narrow(dim, 1, length)
    return (field.diff(dim=dim).square().sum(-1) * edges).sum((1, 2))


def _of_image(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    field = tokens.reshape(-1, rows, columns, tokens.shape[-1])
    power = torch.view_as_real(torch.fft.rfft2(field, dim=(1, 2))).square().sum((-2, -1))  # (B, rows, half the columns)
    ring = _rings_of(grid).to(tokens.device)
    return _shares(power.flatten(1) * _twice(columns, tokens).repeat(rows), ring.flatten(), ring_count(grid))


def _rings_of(grid: tuple[int, int]) -> Tensor:
    """The ring of each frequency (rows, half the columns), in whole numbers, so that none falls beside its bound.

    u cycles down and v across are c = m sqrt((u / rows)^2 + (v / columns)^2) cycles over the shorter side m, and c
    rounds to j or more where c^2 >= (j - 1/2)^2.
    """
    rows, columns = grid
    down = torch.arange(rows).minimum(rows - torch.arange(rows))[:, None] * columns
    across = torch.arange(columns // 2 + 1) * rows
    energy = 4 * min(grid) ** 2 * (down.square() + across.square())
    bounds = (2 * torch.arange(1, ring_count(grid)) - 1).square() * (rows * columns) ** 2
    ring = (energy.unsqueeze(-1) >= bounds).sum(-1).clamp_min(1)
    ring[0, 0] = 0
    return ring


def _of_sequence(tokens: Tensor) -> Tensor:
    count = tokens.shape[1]
    if count < 2:
        return tokens.new_full((len(tokens), TEXT_RINGS), torch.nan)
    power = torch.view_as_real(torch.fft.rfft(tokens, dim=1)).square().sum((-2, -1))
    ring = (2 * (TEXT_RINGS - 1) * torch.arange(count // 2 + 1) + count - 1) // count  # rounded up, in whole numbers
    return _shares(power * _twice(count, tokens), ring.to(tokens.device), TEXT_RINGS)


def _twice(count: int, like: Tensor) -> Tensor:
    """How often each frequency of a real transform over `count` points stands for itself and its conjugate: 1 or 2."""
    weight = like.new_full((count // 2 + 1,), 2.0)
    weight[0] = 1
    if count % 2 == 0:
        weight[-1] = 1
    return weight


def _shares(power: Tensor, ring: Tensor, rings: int) -> Tensor:
    total = power.new_zeros(len(power), rings).index_add_(1, ring, power)
    return total / total.sum(1, keepdim=True)
