"""Models of any source: a timm encoder with a report, a masked autoencoder, or a classifier."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bamboo.checkpoints.key_maps import Tensors
from bamboo.checkpoints.reading import DEFAULTS, Checkpoint, Head, ImageSize, image_size_of, read_source
from bamboo.errors import InputError
from bamboo.reports import Report as Report
from bamboo.shapes import Patches, find_shape
from bamboo.vision.dape import set_grid
from bamboo.vision.encoder import build_encoder, set_norm_eps
from bamboo.vision.heads import plain_head
from bamboo.vision.kv_compression import fit_grid
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pixels import PixelScale

# Why a weight of the source has no place in an encoder, by the first pattern that its name matches.
_REASONS = [
    (r"decoder\.", "decoder weights, which an encoder does not need"),
    (r"encoder\.mask_token$", "the mask token, which an encoder does not need"),
    (r"encoder\.(head|attn_pool|pre_logits)", "the classifier head or pooling, left out"),
    (r"encoder\.fc_norm\.", "the classifier's own norm, left out beside the final norm"),
    (r"", "unexpected: an encoder has no weight of this name"),
]
# Weights without which features are others: one of them that a model lacks must not be left out in silence.
_TRUNK = r"(encoder\.)?(blocks|patch_embed|norm_pre|reg_token|dist_token|cls_token)|decoder\.(blocks|mix)"


def load_encoder(
    source: str | Path | Checkpoint, image_size: ImageSize | None = None, in_chans: int | None = None
) -> tuple[VisionTransformer, Report]:
    """A pretrained encoder without a head, in evaluation mode, and a report on every key that did not match.

    Positions stay frozen where they are the fixed sin-cos table, and can be trained where they were learned. Where the
    source says how pixels are standardised, the `pretrained_cfg` of the encoder does too, as in timm.

    Args:
        source: any model of images of which `bamboo.checkpoints.sources` knows.
        image_size: positions are resampled on their 2-D grid to this size; by default as in the source.
        in_chans: the patch projection is adapted to this number of channels; by default as in the source.

    Raises:
        InputError: where the source cannot be read, or a weight of the encoder is missing or of another shape.
    """
    checkpoint = _use_fc_norm(read_source(source, image_size))
    tensors = _encoder_tensors(checkpoint)
    notes = [*checkpoint.notes, *_adapt_channels(tensors, in_chans)]
    if checkpoint.architecture:
        encoder = _timm_vit(checkpoint, tensors, image_size)
        fill(encoder, tensors, checkpoint)
    else:
        encoder = _plain_vit(checkpoint, tensors)
        table = encoder.pos_embed.detach().clone()
        fill(encoder, tensors, checkpoint)
        learned = checkpoint.arguments["learned_positions"]
        if learned is None:
            learned = not torch.allclose(encoder.pos_embed, table, atol=1e-4)
        encoder.pos_embed.requires_grad_(learned)
    pixels = {key: checkpoint.arguments[key] for key in ("mean", "std")}
    if all(pixels.values()) and len(pixels["mean"]) == encoder.patch_embed.proj.in_channels:
        encoder.pretrained_cfg = {**getattr(encoder, "pretrained_cfg", {}), **pixels}
    notes += _resize(encoder, image_size)
    used = {f"encoder.{key}" for key in encoder.state_dict()}
    unused = {key: _reason(name) for key, name in checkpoint.names.items() if name not in used}
    return encoder.eval(), Report(checkpoint.source, checkpoint.kind, len(used), tuple(notes), unused)


def _reason(name: str) -> str:
    return next(reason for pattern, reason in _REASONS if re.match(pattern, name))


def load_mae(source: str | Path | Checkpoint) -> MaskedAutoencoder:
    """A masked autoencoder in evaluation mode: of a Bamboo checkpoint, a reference MAE file or a Hugging Face ViTMAE.

    What the source does not say (in a reference file the mask ratio and the normalisation) is `build_mae`'s default.

    Raises:
        InputError: where the source cannot be read, has no decoder, or a weight is missing or of another shape.
    """
    checkpoint = read_source(source)
    source, tensors = checkpoint.source, dict(checkpoint.tensors)
    if "decoder.embed.weight" not in tensors or not checkpoint.arguments["qkv_bias"]:
        raise InputError(f"{source} ({checkpoint.kind}) is no masked autoencoder: it has no decoder of ours")
    try:
        mae = build_mae(**{key: value for key, value in checkpoint.arguments.items() if key in DEFAULTS})
    except TypeError as error:
        raise InputError(f"{source} holds arguments that build no model: {error}") from error
    fill(mae, without_class_row(tensors, mae.decoder.pos_embed.shape[1], source), checkpoint)
    return mae.eval()


def without_class_row(tensors: Tensors, count: int, source: str) -> Tensors:
    """Tensors with as many positions of a decoder as there are patches: others give the class token a row of zeros.

    Raises:
        InputError: where that row is not zero.
    """
    positions = tensors.get("decoder.pos_embed")
    if positions is None or positions.shape[1] != count + 1:
        return tensors
    if positions[:, 0].any():
        raise InputError(f"{source}: row 0 of decoder_pos_embed is not zero, which bamboo's decoder lacks")
    return {**tensors, "decoder.pos_embed": positions[:, 1:]}


def load_classifier(source: str | Path) -> tuple[VisionTransformer, Head, PixelScale]:
    """A classifier in evaluation mode, its head, and how its images are standardised.

    It comes from a checkpoint of `Classifier`, what `bamboo export` wrote of one, or a Hugging Face folder of a
    `ViTForImageClassification`. A batch norm before the head is folded into it, so that the model is one of timm's.

    Raises:
        InputError: where the source cannot be read or holds no classifier.
    """
    checkpoint = read_source(source)
    if checkpoint.head is None:
        raise InputError(f"{source} holds no classifier: give a checkpoint of a fine-tuned model")
    tensors = classifier_tensors(checkpoint)
    model = _plain_vit(checkpoint, tensors, num_classes=len(checkpoint.head.classes), global_pool=checkpoint.head.pool)
    fill(model, tensors, checkpoint)
    return model.eval(), checkpoint.head, checkpoint.scale


def classifier_tensors(checkpoint: Checkpoint) -> Tensors:
    """A classifier's weights under timm's names, with a plain linear head."""
    return plain_head(_encoder_tensors(checkpoint))


def pixel_scale(source: str | Path) -> PixelScale:
    """How the images of a model are standardised: by what its source says, else by `PixelScale`'s defaults."""
    return read_source(source).scale


def fill(model: nn.Module, tensors: Tensors, checkpoint: Checkpoint) -> None:
    """Load every weight of a model, and give it the LayerNorm of the source.

    Raises:
        InputError: names the first weight that is missing, of another shape, or of a block that the model lacks.
    """
    expected = model.state_dict()
    _refuse_extra(tensors, expected, checkpoint)
    for key, tensor in expected.items():
        shape = tuple(tensors[key].shape) if key in tensors else "missing"
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{checkpoint.source} is a checkpoint of another shape: "
                f"{key} is {shape} there, and {tuple(tensor.shape)} in this model"
            )
    model.load_state_dict({key: tensors[key] for key in expected})
    set_norm_eps(model, checkpoint.arguments["layer_norm_eps"])


def _refuse_extra(tensors: Tensors, expected: Tensors, checkpoint: Checkpoint) -> None:
    extra = next((key for key in sorted(tensors.keys() - expected.keys()) if re.match(_TRUNK, key)), None)
    if extra:
        raise InputError(
            f"{checkpoint.source} is a checkpoint of another shape: it has {extra}, and this model has not; "
            "of an encoder that is no plain ViT give the name, timm:NAME@FILE"
        )


def _encoder_tensors(checkpoint: Checkpoint) -> Tensors:
    named = checkpoint.tensors.items()
    return {key.removeprefix("encoder."): tensor for key, tensor in named if key.startswith("encoder.")}


def _plain_vit(checkpoint: Checkpoint, tensors: Tensors, **options: Any) -> VisionTransformer:
    shape, patches = find_shape(checkpoint.arguments["shape"]), checkpoint.patches
    if "patch_embed.proj.weight" in tensors:
        patches = replace(patches, in_chans=tensors["patch_embed.proj.weight"].shape[1])
    known = {
        key: checkpoint.arguments[key] for key in ("init", "layer_scale", "attention", "kv_compression", "qkv_bias")
    }
    return build_encoder(shape, patches, **known, **options)


def _timm_vit(checkpoint: Checkpoint, tensors: Tensors, image_size: ImageSize | None) -> VisionTransformer:
    assert checkpoint.architecture
    source, (name, options) = checkpoint.source, checkpoint.architecture
    if "pos_embed" not in tensors or "patch_embed.proj.weight" not in tensors:
        raise InputError(f"{source}: pos_embed or patch_embed.proj.weight is missing: no plain ViT")
    pool, in_chans = "token" if "cls_token" in tensors else "avg", tensors["patch_embed.proj.weight"].shape[1]
    headless = {"num_classes": 0, "fc_norm": False, "global_pool": pool, "in_chans": in_chans}
    try:
        encoder = timm.create_model(name, **options | headless)
    except TypeError as error:
        raise InputError(f"timm:{name} is not a plain ViT: {error}") from error
    if not isinstance(encoder, VisionTransformer) or encoder.pos_embed is None:
        raise InputError(f"timm:{name} is a {type(encoder).__name__}, not a plain ViT with positions")
    _refuse_extra(tensors, encoder.state_dict(), checkpoint)
    more = tensors["pos_embed"].shape[1] - encoder.pos_embed.shape[1]
    if more:
        count, patch_size = encoder.patch_embed.num_patches + more, encoder.patch_embed.patch_size[0]
        size = image_size_of(source, count, patch_size, image_size)
        encoder.set_input_size(Patches.of(size, patch_size).image_size)
    return encoder


def _use_fc_norm(checkpoint: Checkpoint) -> Checkpoint:
    """A norm that followed the pooling of patches is the final norm, where there is no other."""
    if "encoder.norm.weight" in checkpoint.tensors or "encoder.fc_norm.weight" not in checkpoint.tensors:
        return checkpoint
    tensors = {key.replace("fc_norm.", "norm."): tensor for key, tensor in checkpoint.tensors.items()}
    names = {key: name.replace("fc_norm.", "norm.") for key, name in checkpoint.names.items()}
    notes = (*checkpoint.notes, "fc_norm, which followed the pooling, is used as the final norm")
    return replace(checkpoint, tensors=tensors, names=names, notes=notes)


def _adapt_channels(tensors: Tensors, in_chans: int | None) -> list[str]:
    weight = tensors.get("patch_embed.proj.weight")
    if weight is None or in_chans in (None, weight.shape[1]):
        return []
    if weight.shape[1] == 3:
        tensors["patch_embed.proj.weight"] = adapt_input_conv(in_chans, weight)
    else:  # timm adapts three channels alone; a grey image keeps its response
        tensors["patch_embed.proj.weight"] = weight.sum(dim=1, keepdim=True).repeat(1, in_chans, 1, 1) / in_chans
    return [f"patch projection adapted from {weight.shape[1]} to {in_chans} channels"]


def _resize(encoder: VisionTransformer, image_size: ImageSize | None) -> list[str]:
    if image_size is None:
        return []
    before, trained = encoder.patch_embed.grid_size, encoder.pos_embed.requires_grad
    patches = Patches.of(image_size, encoder.patch_embed.patch_size[0])
    encoder.set_input_size(patches.image_size)
    set_grid(encoder)
    fit_grid(encoder)
    encoder.pos_embed.requires_grad_(trained)
    if patches.grid == before:
        return []
    return [f"positions resampled from {before[0]}x{before[1]} to {patches.grid[0]}x{patches.grid[1]} patches"]
