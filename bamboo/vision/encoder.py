"""The vision encoder: a timm `VisionTransformer` at a `Shape`, and the two ways to run it, whole and masked."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.layers.attention import Attention
from timm.models import checkpoint, named_apply
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError, unknown
from bamboo.shapes import Patches, Shape, encoder_flops
from bamboo.vision.attn_scale import AttnScale
from bamboo.vision.dape import DapeV2, dape_flops, set_grid
from bamboo.vision.kv_compression import KVCompression, compress, compression_of

Init = Literal["mae", "depth", "beit", "timm"]
AttentionKind = Literal["plain", "attn_scale", "dape_v2"]
ATTENTION: dict[str, type[Attention]] = {"plain": Attention, "attn_scale": AttnScale, "dape_v2": DapeV2}


def build_encoder(
    shape: Shape,
    patches: Patches,
    init: Init = "mae",
    layer_scale: float | None = None,
    attention: AttentionKind = "plain",
    kv_compression: KVCompression | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> VisionTransformer:
    """A ViT without a head at a shape, with a class token and fixed 2-D sin-cos positions.

    Args:
        shape: depth, width and heads.
        patches: size and patches of the images.
        init: the rule of `init_encoder`.
        layer_scale: let each branch end in a learned scale of each channel that starts at this (Touvron et al. 2021).
        attention: timm's own, or by `AttnScale` or `DapeV2`.
        kv_compression: attend to fewer keys and values in the upper blocks, see `KVCompression`.
        kwargs: further arguments of timm's `VisionTransformer`.

    Raises:
        InputError: where two of these are in each other's way, or there is no such rule.
    """
    if layer_scale is not None and layer_scale <= 0:
        raise InputError(f"layer_scale must be positive, or null for none, got {layer_scale}")
    if attention not in ATTENTION:
        raise unknown("attention", attention, ATTENTION)
    if attention != "plain":
        kwargs["attn_layer"] = ATTENTION[attention]
    encoder = VisionTransformer(
        img_size=patches.image_size,
        patch_size=patches.patch_size,
        in_chans=patches.in_chans,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        init_values=layer_scale,
        **{"num_classes": 0, "weight_init": "skip", **kwargs},
    )
    init_encoder(encoder, init)
    set_grid(encoder)
    if kv_compression:
        compress(encoder, kv_compression)
    fix_positions(encoder.pos_embed, patches.grid)
    return encoder


@torch.no_grad()
def init_encoder(encoder: VisionTransformer, init: Init) -> None:
    """Draw the weights of a fresh encoder, all but its positions, by a published rule.

    - `mae`: Xavier-uniform matrices, a class token of std 0.02 (He et al. 2022).
    - `depth`: that, with the two matrices that end the branches of each block divided by sqrt(2 x depth), as in GPT-2.
    - `beit`: that, with those of block l, counted from 1, divided by sqrt(2 l), as in BEiT.
    - `timm`: normal matrices of std 0.02, as timm has it.

    Raises:
        InputError: for another rule.
    """
    if init not in get_args(Init):
        raise unknown("init", init, get_args(Init))
    encoder.init = init  # which a fresh copy of it repeats
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=1e-6 if init == "timm" else 0.02)
    if init == "timm":
        named_apply(init_weights_vit_timm, encoder)
        return
    encoder.apply(init_weights)
    if init == "mae":
        return
    for number, block in enumerate(encoder.blocks, start=1):
        branches = 2 * (len(encoder.blocks) if init == "depth" else number)
        for projection in (block.attn.proj, block.mlp.fc2):
            projection.weight.div_(branches**0.5)


def shape_of(encoder: VisionTransformer) -> Shape:
    """Depth, width, heads and `mlp_ratio` of a timm ViT."""
    block = encoder.blocks[0]
    return Shape.of(len(encoder.blocks), encoder.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features)


def patches_of(encoder: VisionTransformer) -> Patches:
    """Image size, patch size and channels of a timm ViT."""
    height, width = encoder.patch_embed.img_size
    return Patches((height, width), encoder.patch_embed.patch_size[0], encoder.patch_embed.proj.in_channels)


def options_of(encoder: VisionTransformer) -> dict[str, Any]:
    """`init`, `layer_scale`, `attention` and `kv_compression` of a timm ViT, as `build_encoder` takes them."""
    block = encoder.blocks[0]
    return {
        "init": getattr(encoder, "init", "mae"),
        "layer_scale": getattr(getattr(block, "ls1", None), "init_values", None),
        "attention": attention_of(encoder),
        "kv_compression": compression_of(encoder),
    }


def attention_of(encoder: VisionTransformer) -> AttentionKind:
    """How the blocks of a timm ViT attend; what is none of ours is `plain`."""
    own = type(encoder.blocks[0].attn)
    return cast(AttentionKind, next((name for name, kind in ATTENTION.items() if kind is own), "plain"))


def in_todays_words(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a checkpoint says, of which `attention` was the switch `attn_scale` in earlier versions."""
    said = dict(arguments)
    scaled = said.pop("attn_scale", False)
    return {"attention": "attn_scale" if scaled else "plain", **said}


def flops_of(encoder: VisionTransformer, tokens: int | None = None) -> int:
    """Forward FLOPs of a timm ViT for one image, with `tokens` visible patches (all by default)."""
    shape, patches = shape_of(encoder), patches_of(encoder)
    tokens = patches.count if tokens is None else tokens
    kv = compression_of(encoder) or {"ratio": 1, "from_block": shape.depth}
    adapting = dape_flops(shape, tokens + 1) if attention_of(encoder) == "dape_v2" else 0
    return encoder_flops(shape, patches, tokens, kv["ratio"], shape.depth - kv["from_block"]) + adapting


def set_norm_eps(model: nn.Module, eps: float | None) -> None:
    """Let every LayerNorm of a model have an epsilon; with None each keeps its own."""
    for module in model.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps


def init_weights(module: nn.Module) -> None:
    """Initialise one module as in He et al. 2022: Xavier-uniform matrices (a patch projection too), zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def fix_positions(positions: nn.Parameter, grid: tuple[int, int]) -> None:
    """Write 2-D sin-cos positions into `positions` (1, prefix + rows x columns, width), zero for the prefix; freeze it.

    The first half of a vector codes the column and the second half the row, the order of the reference MAE release.
    """
    count, width = grid[0] * grid[1], positions.shape[-1]
    if width % 4:
        raise InputError(f"sin-cos positions need a width that is a multiple of 4, got {width}")
    table = build_sincos2d_pos_embed(list(grid), dim=width, interleave_sin_cos=True, device=positions.device)
    positions.zero_()
    positions[0, -count:] = table.roll(width // 2, dims=1)
    positions.requires_grad_(False)


def check_maskable(encoder: nn.Module) -> VisionTransformer:
    """The encoder itself, a plain timm ViT with absolute positions; else raises `InputError` for what is in the way."""
    if not isinstance(encoder, VisionTransformer):
        raise InputError(f"masking needs a timm VisionTransformer, got {type(encoder).__name__}")
    if encoder.pos_embed is None:
        raise InputError("masking needs absolute position embeddings, and this encoder has none")
    if encoder.dynamic_img_size or not isinstance(encoder.patch_embed.norm, nn.Identity):
        raise InputError("masking needs a plain patch embedding: no dynamic_img_size, no norm")
    if compression_of(encoder):
        raise InputError("masking leaves no grid of patches, on which this encoder compresses keys and values")
    if len(set(encoder.patch_embed.patch_size)) > 1:
        raise InputError(f"masking needs square patches, got {encoder.patch_embed.patch_size}")
    return encoder


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (B or 1, N, D) at positions (B, K) of each sample: (B, K, D)."""
    tokens = tokens.expand(index.shape[0], -1, -1)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def embed(encoder: VisionTransformer, patches: Tensor, keep: Tensor) -> Tensor:
    """Embed the visible patches alone: (B, N, patch values) at positions `keep` (B, V) to tokens (B, prefix + V, D)."""
    projection = encoder.patch_embed.proj
    # `patchify` puts channels last, the convolution has them first. Turning its weight round instead would give it
    # gradients of other strides, which distributed training copies in every step.
    visible = gather(patches, keep).to(projection.weight.dtype)  # which under bf16-true is that of all weights
    visible = visible.unflatten(-1, (-1, projection.in_channels)).transpose(-1, -2).flatten(2)
    tokens = F.linear(visible, projection.weight.flatten(1), projection.bias)
    start = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    tokens = tokens + gather(encoder.pos_embed[:, start:], keep)
    prefix = [token for token in (encoder.cls_token, encoder.reg_token) if token is not None]
    if prefix:
        head = torch.cat(prefix, dim=1)
        head = head if encoder.no_embed_class else head + encoder.pos_embed[:, :start]
        tokens = torch.cat([head.expand(len(tokens), -1, -1), tokens], dim=1)
    return cast(Tensor, encoder.norm_pre(encoder.pos_drop(tokens)))


def block_states(encoder: VisionTransformer, tokens: Tensor, keep: Tensor | None = None) -> Iterator[Tensor]:
    """The residual stream (B, T, D) after each block in turn, before the final norm.

    Where patches are hidden, `keep` (B, V) says which ones are not; only attention that knows of places looks at it.
    """
    # A block hands one thing to its attention beside the tokens, which timm calls a mask.
    places = (keep,) if attention_of(encoder) == "dape_v2" else ()
    for block in encoder.blocks:
        again = encoder.grad_checkpointing and encoder.training
        tokens = checkpoint(block, tokens, *places) if again else block(tokens, *places)
        yield tokens


def encode(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Features (B, prefix + N, D) of whole images (B, C, H, W) after the final norm: timm's own forward pass."""
    return cast(Tensor, encoder.forward_features(images.to(encoder.patch_embed.proj.weight.dtype)))
