"""Pretraining that starts from weights: a masked autoencoder filled with those of any source."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from bamboo.checkpoints.key_maps import Tensors
from bamboo.checkpoints.loading import load_encoder, without_class_row
from bamboo.checkpoints.reading import Checkpoint, read_source
from bamboo.errors import InputError
from bamboo.reports import Report
from bamboo.shapes import Shape, find_shape
from bamboo.stacking import Stack, origins, stack_blocks, what_fits
from bamboo.vision.decoders import CrossAttentionDecoder
from bamboo.vision.encoder import options_of, patches_of, set_norm_eps, shape_of
from bamboo.vision.mae import MaskedAutoencoder


def start(mae: MaskedAutoencoder, source: str | Path, stack: Stack | None = None) -> tuple[Report, dict[str, Any]]:
    """Give a masked autoencoder the weights of a source: the encoder's, and the decoder's where it has the same.

    Positions are resampled and the patch projection is adapted as by `load_encoder`.

    Args:
        mae: it keeps the decoder that it has where the source has none of its shape.
        source: anything that `load_encoder` reads.
        stack: how its blocks make a deeper encoder, see `bamboo.stacking.origins`.

    Returns:
        A report, and what of the source is no weight: `mean`, `std` (None where it does not say), `layer_norm_eps` and
        `learned_positions`.

    Raises:
        InputError: where the source cannot be read, or its encoder is another one than that of `mae`.
    """
    patches = patches_of(mae.encoder)
    checkpoint = _with_biases(read_source(source, patches.image_size))
    if checkpoint.arguments["kv_compression"]:
        raise InputError(f"{source} compresses keys and values on the grid of patches, of which masking leaves none")
    if stack:
        checkpoint = _stacked(checkpoint, len(mae.encoder.blocks), stack)
    with torch.random.fork_rng(devices=[]):
        encoder, report = load_encoder(checkpoint, patches.image_size, patches.in_chans)
    check_encoder(checkpoint.source, encoder, shape_of(mae.encoder), patches.patch_size, options_of(mae.encoder))
    eps = encoder.norm.eps if isinstance(encoder.norm, nn.LayerNorm) else None
    set_norm_eps(mae, eps)
    _check_parts(checkpoint.source, encoder, mae.encoder)
    mae.encoder.load_state_dict(encoder.state_dict())
    decoder, note = _decoder(checkpoint, mae)
    mae.decoder.load_state_dict(decoder, strict=False)
    pixels = {key: checkpoint.arguments[key] for key in ("mean", "std")}
    if not all(value and len(value) == patches.in_chans for value in pixels.values()):
        pixels = dict.fromkeys(pixels)
    said = {**pixels, "layer_norm_eps": eps, "learned_positions": encoder.pos_embed.requires_grad}
    return _with_decoder(report, checkpoint, mae, decoder, note), said


def check_encoder(
    source: str, encoder: VisionTransformer, shape: Shape | None, patch_size: int | None, options: Mapping[str, Any]
) -> None:
    """Raise `InputError` where an encoder is another one than the configuration of the model says.

    Args:
        source: where it is from, for the message.
        encoder: a timm ViT.
        shape: None for any.
        patch_size: None for any.
        options: `layer_scale` and `attention`, those that matter.
    """
    if not isinstance(encoder.blocks[0], Block):
        raise InputError(f"{source} is no plain ViT: its blocks are {type(encoder.blocks[0]).__name__}")
    own = shape_of(encoder)
    if shape not in (None, own):
        found, wanted = (f"{each} with {each.heads} heads" for each in (own, shape))
        raise InputError(f"{source} is {found}, and model.init_args.shape says {wanted}: {what_fits(own, shape)}")
    own_patch = encoder.patch_embed.patch_size[0]
    if patch_size not in (None, own_patch):
        raise InputError(
            f"{source} has patches of {own_patch} pixels, and model.init_args.patch_size says {patch_size}"
        )
    has = options_of(encoder)
    for name in {"layer_scale", "attention"} & options.keys():
        if options[name] != has[name]:
            found, wanted = (json.dumps(each[name]) for each in (has, options))
            raise InputError(f"{source} has {name} {found}, and model.init_args.{name} says {wanted}")


def _check_parts(source: str, encoder: VisionTransformer, own: VisionTransformer) -> None:
    """Refuse what no plain ViT with a class token has: registers, other norms and activations, for example."""
    theirs, ours = (
        [*(f"{key} {tuple(tensor.shape)}" for key, tensor in vit.state_dict().items()), *str(vit).splitlines()]
        for vit in (encoder, own)
    )
    for verb, lines, others in (("has", theirs, ours), ("lacks", ours, theirs)):
        if more := [line.strip() for line in lines if line not in others]:
            raise InputError(f"{source} is no plain ViT with a class token: it {verb} {more[0]}")


def _with_biases(checkpoint: Checkpoint) -> Checkpoint:
    """Zeros where attention has no bias of queries, keys and values, which is the same function."""
    if checkpoint.arguments["qkv_bias"]:
        return checkpoint
    named = checkpoint.tensors.items()
    weights = {key: tensor for key, tensor in named if key.endswith(".attn.qkv.weight")}
    biases = {f"{key.removesuffix('weight')}bias": tensor.new_zeros(len(tensor)) for key, tensor in weights.items()}
    return replace(
        checkpoint,
        tensors={**biases, **checkpoint.tensors},
        arguments={**checkpoint.arguments, "qkv_bias": True},
        notes=(*checkpoint.notes, "queries, keys and values had no bias: those here start at zero"),
    )


def _stacked(checkpoint: Checkpoint, deeper: int, stack: Stack) -> Checkpoint:
    blocks = "encoder.blocks."
    depth = len({key.split(".")[2] for key in checkpoint.tensors if key.startswith(blocks)})
    origins(depth, deeper, stack)
    ends = ("ls1.", "ls2.") if f"{blocks}0.ls1.gamma" in checkpoint.tensors else ("attn.proj.", "mlp.fc2.")
    architecture = checkpoint.architecture and (
        checkpoint.architecture[0],
        {**checkpoint.architecture[1], "depth": deeper},
    )
    return replace(
        checkpoint,
        tensors=stack_blocks(checkpoint.tensors, blocks, ends, deeper, stack),
        arguments={
            **checkpoint.arguments,
            "shape": replace(find_shape(checkpoint.arguments["shape"]), depth=deeper),
        },
        architecture=architecture,
        notes=(*checkpoint.notes, f"{depth} blocks stacked to {deeper} ({stack})"),
    )


def _decoder(checkpoint: Checkpoint, mae: MaskedAutoencoder) -> tuple[Tensors, str]:
    """The weights of a source's decoder where it is the one of `mae`, else none; and what to say of it."""
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key.startswith("decoder.")}
    if "decoder.embed.weight" not in tensors:
        return {}, "the source has no decoder"
    said, own = checkpoint.arguments, mae.decoder
    kind = "cross" if isinstance(own, CrossAttentionDecoder) else "self"
    shape = find_shape(said["decoder_shape"])
    if (said["decoder"], shape) != (kind, own.shape):
        theirs, ours = (
            f"{each} with {each.heads} heads ({name})" for each, name in ((shape, said["decoder"]), (own.shape, kind))
        )
        return {}, f"the decoder starts fresh: that of the source is {theirs}, and this one {ours}"
    expected = {f"decoder.{key}": tensor for key, tensor in own.state_dict().items()}
    if checkpoint.patches.grid == patches_of(mae.encoder).grid:
        tensors = without_class_row(tensors, own.pos_embed.shape[1], checkpoint.source)
    else:
        tensors["decoder.pos_embed"] = own.pos_embed  # a fixed table, of the grid at hand
    for key, tensor in expected.items():
        if key not in tensors or tensors[key].shape != tensor.shape:
            found = tuple(tensors[key].shape) if key in tensors else "missing"
            return {}, f"the decoder starts fresh: {key} is {found} in the source, and {tuple(tensor.shape)} here"
    loaded = {key.removeprefix("decoder."): tensors[key] for key in expected}
    if said["norm_pix"] != mae.norm_pix:
        return loaded, f"the decoder learned to predict by norm_pix {said['norm_pix']}, which here is {mae.norm_pix}"
    return loaded, ""


def _with_decoder(
    report: Report, checkpoint: Checkpoint, mae: MaskedAutoencoder, decoder: Tensors, note: str
) -> Report:
    """The report on an encoder, of the whole model that it is a part of."""
    used = {f"decoder.{key}" for key in decoder}
    unused = {
        key: "its decoder" if checkpoint.names[key].startswith("decoder.") else reason
        for key, reason in report.unused.items()
        if checkpoint.names[key] not in used
    }
    return replace(
        report,
        loaded=report.loaded + len(used),
        notes=(*report.notes, *([note] if note else [])),
        unused=unused,
        fresh=() if decoder else tuple(f"decoder.{key}" for key in mae.decoder.state_dict()),
    )
