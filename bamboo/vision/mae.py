"""The masked autoencoder (He et al. 2022) around any plain timm ViT, in seven steps."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bamboo.errors import InputError, unknown
from bamboo.shapes import DECODER, Patches, Shape, decoder_flops, find_shape
from bamboo.vision.decoders import CrossAttentionDecoder, Decoder, SelfAttentionDecoder
from bamboo.vision.encoder import (
    AttentionKind,
    Init,
    block_states,
    build_encoder,
    check_maskable,
    embed,
    flops_of,
    gather,
    patches_of,
    shape_of,
)
from bamboo.vision.pixels import patchify


def build_mae(
    shape: str | Shape = "bamboo-base",
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    mask_ratio: float = 0.75,
    predict_ratio: float = 1.0,
    norm_pix: bool = True,
    decoder: Literal["self", "cross"] = "self",
    decoder_shape: Shape = DECODER,
    mix_layers: bool = False,
    init: Init = "mae",
    layer_scale: float | None = None,
    attention: AttentionKind = "plain",
) -> "MaskedAutoencoder":
    """A freshly initialised masked autoencoder.

    Args:
        shape: depth, width and heads of the encoder, or one of the names that `bamboo shapes` prints.
        image_size: height and width in pixels; one number for a square.
        patch_size: side of a patch in pixels.
        in_chans: channels of an image.
        mask_ratio: share of patches that are hidden.
        predict_ratio: share of the hidden patches, chosen at random, that are predicted.
        norm_pix: predict each patch standardised by its own mean and (unbiased) variance.
        decoder: `self`-attention over all tokens (He et al. 2022), or `cross`-attention to the visible (CrossMAE).
        decoder_shape: depth, width and heads of the decoder.
        mix_layers: let each block of the cross-attention decoder read its own learned mix of all encoder layers.
        init: how the encoder starts: `mae`; `depth` or `beit`, whose residual branches are smaller; or `timm`.
        layer_scale: let each branch of the encoder end in a learned scale of each channel that starts at this.
        attention: of the encoder: `plain`; `attn_scale`, where each head learns how far its map departs from the
            uniform one; or `dape_v2`, where scores and a bias of distance adapt each other. See `AttnScale`, `DapeV2`.
    """
    size, patches = find_shape(shape), Patches.of(image_size, patch_size, in_chans)
    sizes = (size.width, patches, find_shape(decoder_shape))
    if decoder not in ("self", "cross"):
        raise unknown("decoder", decoder, ("self", "cross"))
    if mix_layers and decoder != "cross":
        raise InputError("mix_layers belongs to the cross-attention decoder: set decoder to 'cross'")
    # First, so that a seed draws the same encoder under any objective.
    encoder = build_encoder(size, patches, init, layer_scale, attention)
    built: Decoder
    if decoder == "cross":
        built = CrossAttentionDecoder(*sizes, mix_layers=size.depth if mix_layers else 0)
    else:
        built = SelfAttentionDecoder(*sizes)
    return MaskedAutoencoder(encoder, built, mask_ratio, predict_ratio, norm_pix)


class MAEOutput(NamedTuple):
    """What one pass gives: the loss (scalar), the prediction (B, M, values) and where it belongs (B, V), (B, M)."""

    loss: Tensor
    predicted: Tensor
    keep: Tensor
    masked: Tensor


class MaskedAutoencoder(nn.Module):
    """Hide most patches of an image, encode the visible rest, and predict the hidden ones.

    The options are those of `build_mae`, the encoder is any plain timm ViT.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: Decoder,
        mask_ratio: float = 0.75,
        predict_ratio: float = 1.0,
        norm_pix: bool = True,
    ):
        super().__init__()
        self.encoder = check_maskable(encoder)
        self.decoder = decoder
        self.norm_pix = norm_pix
        count = encoder.patch_embed.num_patches
        self.visible = int(count * (1 - mask_ratio))
        self.predicted = round((count - self.visible) * predict_ratio)
        if not 0 < self.visible < count:
            raise InputError(f"mask_ratio {mask_ratio} leaves {self.visible} of {count} patches visible")
        if not 0 < self.predicted <= count - self.visible:
            raise InputError(
                f"predict_ratio {predict_ratio} predicts {self.predicted} of {count - self.visible} patches"
            )

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.encoder.patch_embed.patch_size[0])

    @property
    def flops(self) -> int:
        """Forward FLOPs for one image."""
        encoder, patches = shape_of(self.encoder), patches_of(self.encoder)
        kind = {"cross": isinstance(self.decoder, CrossAttentionDecoder), "mix": self.decoder.all_layers}
        decoding = decoder_flops(self.decoder.shape, encoder, patches, self.visible, self.predicted, **kind)
        return flops_of(self.encoder, self.visible) + decoding

    def forward(self, images: Tensor, noise: Tensor) -> MAEOutput:
        """Reconstruct standardised images (B, C, H, W); the lowest values of `noise` (B, N) say what stays visible."""
        patches = patchify(images, self.patch_size)  # (B, N, values)
        keep, masked = self.split(noise)  # (B, V), (B, M)
        tokens = embed(self.encoder, patches, keep)  # (B, prefix + V, D)
        states = self.encode(tokens, keep)  # of (B, prefix + V, D)
        predicted = self.decoder(states, keep, masked)  # (B, M, values)
        target = self.target(gather(patches, masked))  # (B, M, values)
        loss = (predicted.float() - target).square().mean()
        return MAEOutput(loss, predicted, keep, masked)

    def split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the visible patches (B, V) and of the hidden ones that are predicted (B, M)."""
        order = noise.argsort(dim=1)
        return order[:, : self.visible], order[:, self.visible : self.visible + self.predicted]

    def encode(self, tokens: Tensor, keep: Tensor) -> Sequence[Tensor]:
        """The encoder's normed output of the patches at `keep`: after each block if layers are mixed, else the last."""
        if self.decoder.all_layers:
            return [self.encoder.norm(state) for state in block_states(self.encoder, tokens, keep)]
        *_, last = block_states(self.encoder, tokens, keep)
        return [self.encoder.norm(last)]

    def target(self, patches: Tensor) -> Tensor:
        """What is to be predicted of patches (B, M, values), in fp32 whatever the precision of the step."""
        patches = patches.float()
        if not self.norm_pix:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def to_pixels(self, predicted: Tensor, patches: Tensor) -> Tensor:
        """Predictions on the scale of the pixels, for looking at them.

        With `norm_pix` a prediction holds no brightness or contrast: those of the true patches are used.
        """
        if not self.norm_pix:
            return predicted.float()
        variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
        return predicted.float() * (variance + 1e-6).sqrt() + mean
