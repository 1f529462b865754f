"""DAPE V2 (Zheng et al. 2024) on images: scores and a relative bias, convolved over the keys of a row of patches."""

from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError
from bamboo.shapes import Shape

WIDTH = 32
"""Channels between the two convolutions."""


class DapeV2(Attention):
    """timm's attention with logits S + B + f([S; B]), of scores S and a bias B of the distance on the grid of patches.

    B is minus a learned slope of each head times the distance; class token and registers are at distance 0 of all. f
    is two convolutions of kernel 3, heads as channels: 2 heads, 32, heads, with LeakyReLU between. They run along the
    rows of the grid of keys: a key's neighbours are the patches to its left and right, and what is no key (a hidden
    patch, or none beyond the edge) is zero before each of them. Class token and registers have no neighbours. The paper
    is about texts: bias and rows are a choice of this project.
    """

    def __init__(self, dim: int, num_heads: int = 8, **options: Any):
        super().__init__(dim, num_heads, **options)
        self.grid, self.prefix = (0, 0), 1
        self.slopes = nn.Parameter(torch.empty(num_heads))
        with torch.random.fork_rng(devices=[]):  # so that a seed draws all other weights as it does for plain attention
            self.inner, self.outer = nn.Conv1d(2 * num_heads, WIDTH, 3), nn.Conv1d(WIDTH, num_heads, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slopes as ALiBi's (Press et al. 2022), 2^(-8 h / heads) for h from 1; the convolutions reset themselves."""
        heads = torch.arange(1, self.num_heads + 1, dtype=self.slopes.dtype, device=self.slopes.device)
        nn.init.ones_(self.slopes)
        self.slopes.data.copy_(2 ** (-8 * heads / self.num_heads))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, prefix + N, D) to as many.

        Args:
            x: class token and registers, then patches.
            attn_mask: no mask, but what timm's block hands on in its place: where each patch is, by its number in
                raster order (B, N); None for whole images.
            is_causal: must be false.

        Raises:
            InputError: for a mask, and for a number of patches that is not that of the grid where no places are given.
        """
        places = self._places(x, attn_mask, is_causal)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        scores = query @ key.mT * self.scale
        bias = (-self.slopes[:, None, None] * self._distances(places)[:, None]).to(scores.dtype)
        pairs = torch.cat([scores, bias.expand_as(scores)], 1)  # (B, 2 heads, T, T)
        added = self._along_rows(pairs) if attn_mask is None else self._between(pairs, places)
        dropout = self.attn_drop.p if self.training else 0.0
        logits = (bias + added).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=logits, dropout_p=dropout)
        projected: Tensor = self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))
        return self.proj_drop(projected)  # type: ignore[no-any-return]

    def _places(self, tokens: Tensor, given: Tensor | None, is_causal: bool) -> Tensor:
        """Of each patch after the prefix, its number in raster order (B or 1, N)."""
        (rows, columns), count = self.grid, tokens.shape[1] - self.prefix
        if is_causal or (given is not None and (given.dtype != torch.long or given.shape[-1] != count)):
            raise InputError("DAPE V2 attends to all tokens: it takes the places of patches, and no attention mask")
        if given is not None:
            return given
        if count != rows * columns:
            raise InputError(
                f"DAPE V2 knows a grid of {rows}x{columns} patches after {self.prefix} other tokens, and there are "
                f"{tokens.shape[1]} tokens: give whole images of the size that the encoder is for, or places"
            )
        return torch.arange(count, device=tokens.device)[None]

    def _distances(self, places: Tensor) -> Tensor:
        """Euclidean distances of all tokens, in patches (B or 1, T, T): 0 to and from the prefix."""
        exact = torch.promote_types(self.slopes.dtype, torch.float32)  # as bf16 is of small whole numbers alone
        points = torch.stack([places // self.grid[1], places % self.grid[1]], -1).to(exact)
        between = (points[:, :, None] - points[:, None]).square().sum(-1).sqrt()
        return F.pad(between, (self.prefix, 0, self.prefix, 0))

    def _along_rows(self, pairs: Tensor) -> Tensor:
        """What f gives of the pairs of whole images: convolutions that end with the rows of the grid of keys."""
        inner, outer = self.inner.weight[:, :, None], self.outer.weight[:, :, None]
        found, widths = [], (1, self.grid[1])  # a token of the prefix is a row of its own
        for keys, width in zip(pairs.tensor_split([self.prefix], dim=-1), widths, strict=True):
            if keys.shape[-1]:
                rows = keys.reshape(*keys.shape[:2], -1, width).contiguous(memory_format=torch.channels_last)
                hidden = F.leaky_relu_(F.conv2d(rows, inner, self.inner.bias, padding=(0, 1)))
                added = F.conv2d(hidden, outer, self.outer.bias, padding=(0, 1))
                found.append(added.reshape(len(added), -1, *keys.shape[2:]))
        return torch.cat(found, -1)

    def _between(self, pairs: Tensor, places: Tensor) -> Tensor:
        """What f gives of the pairs of some patches: the same convolutions, whose neighbours are looked up."""
        left, right = (self._neighbours(places, step) for step in (-1, 1))
        read = torch.cat([_at(pairs, *left), pairs, _at(pairs, *right)], 1).movedim(1, -1)  # (B, T, T, 3 x 2 heads)
        hidden = F.leaky_relu_(F.linear(read, self.inner.weight.movedim(2, 1).flatten(1), self.inner.bias))
        taps = F.linear(hidden, self.outer.weight.movedim(2, 0).flatten(0, 1)).movedim(-1, 1)
        of_left, own, of_right = taps.chunk(3, 1)
        bias = cast(Tensor, self.outer.bias)[:, None, None]
        return _at(of_left, *left) + own + _at(of_right, *right) + bias

    def _neighbours(self, places: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Of each token the number of the one `step` columns on, and whether there is one: (B, T) both."""
        (rows, columns), count = self.grid, places.shape[1]
        numbers = torch.arange(self.prefix, self.prefix + count, device=places.device).expand_as(places)
        tokens = places.new_full((len(places), rows * columns), -1).scatter(1, places, numbers)
        found = tokens.gather(1, (places + step).clamp(0, rows * columns - 1))
        column = places % columns + step
        present = (found >= 0) & (column >= 0) & (column < columns)
        return F.pad(found.clamp(0), (self.prefix, 0)), F.pad(present, (self.prefix, 0))


def _at(channels: Tensor, keys: Tensor, present: Tensor) -> Tensor:
    """Channels (B, any, queries, keys) at other keys (B, keys), zero where those are not `present`."""
    chosen = channels.gather(3, keys[:, None, None].expand_as(channels))
    return chosen.masked_fill(~present[:, None, None], 0.0)


def set_grid(encoder: VisionTransformer) -> None:
    """Tell the attention of an encoder its grid of patches, which may be new."""
    for block in encoder.blocks:
        if isinstance(block.attn, DapeV2):
            block.attn.grid, block.attn.prefix = encoder.patch_embed.grid_size, encoder.num_prefix_tokens


def dape_flops(shape: Shape, tokens: int) -> int:
    """Forward FLOPs, of all blocks over one image, of adapting: the scores once more, and the two convolutions."""
    return shape.depth * tokens**2 * (2 * shape.width + 2 * 3 * WIDTH * (2 * shape.heads + shape.heads))
