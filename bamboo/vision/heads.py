"""From an encoder to a classifier and back: pooling, a head, drop path, and a batch norm folded into the head."""

from functools import partial
from typing import Literal

import torch
from timm.layers import AttentionPoolLatent, DropPath, calculate_drop_path_rates
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bamboo.errors import InputError, unknown

Pool = Literal["avg", "token", "map"]
POOLS = ("avg", "token", "map")


def attach_head(
    encoder: VisionTransformer, num_classes: int, pool: Pool = "avg", batch_norm: bool = False, std: float = 2e-5
) -> VisionTransformer:
    """Make a classifier of an encoder, in place: what timm builds with the same `num_classes` and `global_pool`.

    Args:
        encoder: a timm ViT without a head.
        num_classes: outputs of the head.
        pool: `avg`, the mean of the patch tokens under a fresh norm in place of the final one (He et al. 2022);
            `token`, the class token after the final norm; `map`, attention from a learned query to the patch tokens.
        batch_norm: standardise what the head sees by a batch norm without weights, as for a linear probe.
        std: of the truncated normal that initialises the head; its biases are zero.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, got {num_classes}")
    if pool == "token" and not encoder.has_class_token:
        raise InputError("pool 'token' needs an encoder with a class token: set pool to 'avg'")
    width, eps = encoder.embed_dim, getattr(encoder.norm, "eps", 1e-6)
    norm = type(encoder.norm) if isinstance(encoder.norm, nn.LayerNorm) else nn.LayerNorm
    encoder.global_pool, encoder.num_classes = pool, num_classes
    if pool == "avg":
        encoder.norm, encoder.fc_norm = nn.Identity(), norm(width, eps=eps)
    elif pool == "map":
        block = encoder.blocks[0]
        sizes = {"num_heads": block.attn.num_heads, "mlp_ratio": block.mlp.fc1.out_features / width}
        encoder.attn_pool = AttentionPoolLatent(width, **sizes, norm_layer=partial(norm, eps=eps))
    linear = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    encoder.head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear) if batch_norm else linear
    return encoder


class TensorDropPath(DropPath):
    """timm's drop path with the rate in a tensor: a number would make every block a graph of its own, if compiled."""

    keep: Tensor

    def __init__(self, drop_prob: float):
        super().__init__(drop_prob)
        self.register_buffer("keep", torch.tensor(1 - drop_prob), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Leave out the branch (B, ...) of each sample with probability `drop_prob`, and scale up what stays."""
        if not self.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=self.keep.dtype, device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


def set_drop_path(encoder: VisionTransformer, rate: float) -> None:
    """Let the branches of a block be left out at random, with a probability that grows from 0 to `rate` at the top."""
    if not 0 <= rate < 1:
        raise InputError(f"drop_path must be at least 0 and below 1, got {rate}")
    for block, share in zip(encoder.blocks, calculate_drop_path_rates(rate, len(encoder.blocks)), strict=True):
        block.drop_path1, block.drop_path2 = (TensorDropPath(share) if share else nn.Identity() for _ in range(2))


def plain_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's weights with the batch norm before its head, if there is one, folded into the head.

    (x - mean) / sqrt(var + eps) goes into W and b as W / sqrt(var + eps) and b - W mean / sqrt(var + eps).
    """
    if "head.0.running_var" not in weights:
        return weights
    weight = weights["head.1.weight"].double() * (weights["head.0.running_var"].double() + 1e-6).rsqrt()
    bias = weights["head.1.bias"].double() - weight @ weights["head.0.running_mean"].double()
    others = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    return {**others, "head.weight": weight.to(torch.float32), "head.bias": bias.to(torch.float32)}
