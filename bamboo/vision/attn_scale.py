"""AttnScale (Wang et al. 2022): attention that scales what its map has beyond the uniform one, head by head."""

from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError


class AttnScale(Attention):
    """timm's attention with (1/n) 11^T + (1 + lambda)(A - (1/n) 11^T) in place of the map A of each head.

    Over all n tokens, so the result is (1 + lambda) A v - lambda mean(v), which a fused kernel computes. The scales are
    the parameter `lamb` (heads,), as in the published code; they start at 0, where this is plain attention.
    """

    def __init__(self, dim: int, num_heads: int = 8, **options: Any):
        super().__init__(dim, num_heads, **options)
        self.lamb = nn.Parameter(torch.zeros(num_heads))

    def reset_parameters(self) -> None:
        """Back to plain attention."""
        nn.init.zeros_(self.lamb)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D). Raises `InputError` for a mask: n is the number of all tokens."""
        if attn_mask is not None or is_causal:
            raise InputError("AttnScale attends to all tokens: it takes no attention mask")
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, dropout_p=dropout)
        mixed = mixed + self._scales(mixed) * (mixed - value.mean(2, keepdim=True))
        projected: Tensor = self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))
        return self.proj_drop(projected)  # type: ignore[no-any-return]

    def rescale(self, maps: Tensor) -> Tensor:
        """The maps that mix tokens, of those of softmax (B, heads, N, N): rows add up to 1, numbers may be negative."""
        return maps + self._scales(maps) * (maps - 1 / maps.shape[-1])

    def _scales(self, like: Tensor) -> Tensor:
        return self.lamb.to(like.dtype)[:, None, None]
