"""Two decoders: from the encoder's states to the pixels of the masked patches.

Both take `states`, the encoder's normed output after each block that they asked for, each (B, prefix + V, D), and the
positions `keep` (B, V) and `masked` (B, M) of the visible and the masked patches, and return (B, M, patch values).
Attention does not care about token order, so nothing is un-shuffled.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers import Attention, LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.shapes import DECODER, Patches, Shape
from bamboo.vision.encoder import fix_positions, gather, init_weights


class Decoder(nn.Module):
    """What both decoders have in common; `width_in` is the width of the encoder."""

    all_layers = False

    def __init__(self, width_in: int, patches: Patches, shape: Shape = DECODER):
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(width_in, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.empty(1, patches.count, shape.width))
        self.blocks = nn.ModuleList(self.make_blocks(shape))
        self.norm = LayerNorm(shape.width)
        self.pred = nn.Linear(shape.width, patches.values)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)
        fix_positions(self.pos_embed, patches.grid)

    def make_blocks(self, shape: Shape) -> list[nn.Module]:
        """The blocks of the decoder."""
        raise NotImplementedError

    def queries(self, masked: Tensor) -> Tensor:
        """Mask tokens (B, M, W) at positions (B, M)."""
        return self.mask_token + gather(self.pos_embed, masked)


class SelfAttentionDecoder(Decoder):
    """The decoder of He et al. 2022: blocks of self-attention over visible and mask tokens together."""

    def make_blocks(self, shape: Shape) -> list[nn.Module]:
        """timm's blocks, the last of which gives the masked tokens alone."""
        kinds = [Block] * (shape.depth - 1) + [LastBlock]
        return [kind(shape.width, shape.heads, shape.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for kind in kinds]

    def forward(self, states: Sequence[Tensor], keep: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches; the last block and the prediction compute their positions alone."""
        context = self.embed(states[-1])
        prefix = context.shape[1] - keep.shape[1]
        visible = context[:, prefix:] + gather(self.pos_embed, keep)
        tokens = torch.cat([context[:, :prefix], visible, self.queries(masked).to(visible.dtype)], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        return cast(Tensor, self.pred(self.norm(last(tokens, masked.shape[1]))))


class LastBlock(Block):
    """A timm block that gives its last tokens alone: the others are only looked at."""

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Tokens (B, T, W) to what the block makes of the last `count` of them (B, count, W)."""
        normed = self.norm1(tokens)
        out = tokens[:, -count:] + attend(self.attn, normed[:, -count:], normed)
        return cast(Tensor, out + self.mlp(self.norm2(out)))


class CrossAttentionDecoder(Decoder):
    """The decoder of CrossMAE (Fu et al. 2024): mask tokens ask the encoder's output and do not see one another.

    Where the number of encoder blocks is given as `mix_layers`, each decoder block reads its own learned mix of all
    their outputs, which starts at the last output alone.
    """

    def __init__(self, width_in: int, patches: Patches, shape: Shape = DECODER, mix_layers: int = 0):
        super().__init__(width_in, patches, shape)
        self.all_layers = mix_layers > 0
        if mix_layers:
            self.mix = nn.Parameter(torch.eye(mix_layers)[-1].repeat(shape.depth, 1))

    def make_blocks(self, shape: Shape) -> list[nn.Module]:
        """Blocks of cross-attention."""
        return [CrossAttentionBlock(shape) for _ in range(shape.depth)]

    def forward(self, states: Sequence[Tensor], keep: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches from what the encoder made of the visible ones."""
        if self.all_layers:
            contexts = list(self.embed(torch.einsum("kl,lbtd->kbtd", self.mix, torch.stack(list(states)))))
        else:
            contexts = [self.embed(states[-1])] * len(self.blocks)
        queries = self.queries(masked)
        for block, context in zip(self.blocks, contexts, strict=True):
            queries = block(queries, context)
        return cast(Tensor, self.pred(self.norm(queries)))


class CrossAttentionBlock(nn.Module):
    """Pre-norm block: cross-attention to a context, then an MLP."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm1 = LayerNorm(shape.width)
        self.attn = Attention(shape.width, num_heads=shape.heads, qkv_bias=True)
        self.norm2 = LayerNorm(shape.width)
        self.mlp = Mlp(shape.width, shape.mlp_width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Update queries (B, M, W) from a context (B, T, W)."""
        queries = queries + attend(self.attn, self.norm1(queries), context)
        return cast(Tensor, queries + self.mlp(self.norm2(queries)))


def attend(attention: Attention, queries: Tensor, tokens: Tensor) -> Tensor:
    """Attention of queries (B, M, W) over tokens (B, T, W) with the weights of timm's self-attention: (B, M, W)."""
    (batch, count, width), heads = queries.shape, attention.num_heads
    weights, biases = (part.split([width, 2 * width]) for part in (attention.qkv.weight, attention.qkv.bias))
    query = F.linear(queries, weights[0], biases[0]).view(batch, count, heads, width // heads).transpose(1, 2)
    both = F.linear(tokens, weights[1], biases[1]).view(batch, tokens.shape[1], 2, heads, width // heads)
    key, value = both.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return cast(Tensor, attention.proj(mixed.transpose(1, 2).reshape(batch, count, width)))
