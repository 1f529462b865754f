"""Keys and values of fewer places than there are queries, on the grid of patches (Chen et al. 2024, PixArt-Sigma)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError


@dataclass(frozen=True)
class KVCompression:
    """Where keys and values are compressed, and how far.

    Args:
        ratio: side of the windows of patches that one key and value stands for; 1 is plain attention.
        from_block: first block with compressed keys and values, counted from 0; `half` is depth // 2, as published.
    """

    ratio: int = 2
    from_block: int | Literal["half"] = "half"

    def __post_init__(self) -> None:
        """Refuse what no encoder could have."""
        if self.ratio < 1:
            raise InputError(f"kv_compression.ratio must be 1 or more, got {self.ratio}")
        if self.from_block != "half" and not isinstance(self.from_block, int):
            raise InputError(f"kv_compression.from_block must be 'half' or the number of a block: {self.from_block!r}")

    @classmethod
    def of(cls, value: "KVCompression | Mapping[str, Any]") -> "KVCompression":
        """One by its numbers, or itself; raises `InputError` for numbers of none."""
        if isinstance(value, KVCompression):
            return value
        try:
            return cls(**value)
        except TypeError as error:
            raise InputError(f"kv_compression has a ratio and a from_block, got {dict(value)}") from error

    def first(self, depth: int) -> int:
        """Number of the first compressed block of `depth`; raises `InputError` where there is no such block."""
        number = depth // 2 if isinstance(self.from_block, str) else self.from_block
        if not 0 <= number < depth:
            raise InputError(f"kv_compression.from_block must be 'half' or from 0 to {depth - 1}, got {number}")
        return number


class WindowConv(nn.Module):
    """A depthwise convolution, kernel and stride `ratio`, over the grid of keys and over that of values alike.

    It starts as the mean of each window: weights 1 / ratio^2, bias 0. No `nn.Conv2d`: encoders draw those at random,
    and on a CPU they take four times as long as these sums over whole channels.
    """

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.weight, self.bias = nn.Parameter(torch.empty(width, 1, ratio, ratio)), nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the mean."""
        nn.init.constant_(self.weight, 1 / self.ratio**2)
        nn.init.zeros_(self.bias)

    def forward(self, grid: Tensor) -> Tensor:
        """Keys and values on a grid (B, rows, columns, 2, D) to those of its windows."""
        weight, windows = self.weight.to(grid.dtype), self.bias.to(grid.dtype)
        for row in range(self.ratio):
            for column in range(self.ratio):
                each = grid[:, row :: self.ratio, column :: self.ratio]
                windows = torch.addcmul(windows, each, weight[:, 0, row, column])
        return windows


class CompressedAttention(Attention):
    """timm's attention, in which windows of patches share a key and a value: `WindowConv`, then one LayerNorm for both.

    Queries are those of all tokens, and the tokens before the patches keep keys and values of their own, as they are.
    Where timm norms queries and keys, it is the compressed keys that are normed.

    Args:
        plain: timm's own attention, of which this takes all parts.
        ratio: side of a window.
        eps: of the LayerNorm.
    """

    grid: tuple[int, int]
    prefix: int

    def __init__(self, plain: Attention, ratio: int, eps: float):
        with torch.device("meta"):  # neither memory nor random numbers for parts that are replaced
            super().__init__(plain.qkv.in_features, plain.num_heads, attn_head_dim=plain.head_dim)
        for name, part in plain.named_children():
            setattr(self, name, part)
        self.kv_conv, self.kv_norm = WindowConv(self.attn_dim, ratio), nn.LayerNorm(self.attn_dim, eps)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, prefix + N, D) to as many. Raises `InputError` for masks and for patches that are no grid."""
        if attn_mask is not None or is_causal:
            raise InputError("a compressed key stands for several tokens: their attention takes no mask")
        query, pairs = self.qkv(x).split((self.attn_dim, 2 * self.attn_dim), -1)
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.compress(pairs).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, dropout_p=dropout)
        projected: Tensor = self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))
        return self.proj_drop(projected)  # type: ignore[no-any-return]

    def compress(self, pairs: Tensor) -> Tensor:
        """Keys beside values (B, prefix + N, 2 D) to (B, prefix + N / ratio^2, 2 D)."""
        rows, columns = self.grid
        if pairs.shape[1] != self.prefix + rows * columns:
            raise InputError(
                f"keys and values are compressed on a grid of {rows}x{columns} patches after {self.prefix} others, "
                f"and there are {pairs.shape[1]} tokens: give whole images of the size that the encoder is for"
            )
        grid = pairs[:, self.prefix :].unflatten(-1, (2, -1)).unflatten(1, self.grid)
        windows = self.kv_norm(self.kv_conv(grid)).flatten(1, 2).flatten(2)
        return torch.cat([pairs[:, : self.prefix], windows.to(pairs.dtype)], dim=1)


def compress(encoder: VisionTransformer, compression: KVCompression | Mapping[str, Any]) -> list[str]:
    """Let the attention of the upper blocks of an encoder compress keys and values, in place; the names of new weights.

    Raises:
        InputError: where there is no such block, its attention is another one than timm's, or the grid does not divide.
    """
    compression, before = KVCompression.of(compression), {*encoder.state_dict()}
    for block in encoder.blocks[compression.first(len(encoder.blocks)) :]:
        if type(block.attn) is not Attention:
            raise InputError(f"kv_compression takes timm's plain attention, and not {type(block.attn).__name__}")
        if compression.ratio > 1:
            block.attn = CompressedAttention(block.attn, compression.ratio, block.norm1.eps)
            block.attn.to(block.attn.qkv.weight.device, block.attn.qkv.weight.dtype)
    fit_grid(encoder)
    return [name for name in encoder.state_dict() if name not in before]


def compression_of(encoder: VisionTransformer) -> dict[str, Any] | None:
    """Ratio and first block of an encoder that compresses keys and values, None of another."""
    return next(({"ratio": attention.kv_conv.ratio, "from_block": at} for at, attention in _compressed(encoder)), None)


def fit_grid(encoder: VisionTransformer) -> None:
    """Tell compressed attention the grid of an encoder, which may be new. `InputError` where it does not divide."""
    (rows, columns), side = encoder.patch_embed.grid_size, encoder.patch_embed.patch_size[0]
    for _, attention in _compressed(encoder):
        ratio = attention.kv_conv.ratio
        if rows % ratio or columns % ratio:
            raise InputError(
                f"kv_compression.ratio {ratio} does not divide the grid of {rows}x{columns} patches: "
                f"give an image_size that is a multiple of {ratio * side}"
            )
        attention.grid, attention.prefix = (rows, columns), encoder.num_prefix_tokens


def _compressed(encoder: VisionTransformer) -> Iterator[tuple[int, CompressedAttention]]:
    return ((at, b.attn) for at, b in enumerate(encoder.blocks) if isinstance(b.attn, CompressedAttention))
