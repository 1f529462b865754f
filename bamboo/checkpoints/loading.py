"""Reading models: any source becomes a timm encoder, with a report, or a masked autoencoder."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bamboo.checkpoints.sources import DEFAULTS, Weights, image_side, open_source
from bamboo.errors import InputError
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pixels import PixelScale

ImageSize = int | tuple[int, int]

# Why a weight of the source has no place in an encoder, by the first pattern that its name (ours) matches.
_REASONS = [
    (r"decoder\.", "decoder weights, which an encoder does not need"),
    (r"encoder\.mask_token$", "the mask token, which an encoder does not need"),
    (r"encoder\.(head|attn_pool|pre_logits)", "the classifier head or pooling, left out"),
    (r"encoder\.fc_norm\.", "the classifier's own norm, left out beside the final norm"),
    (r"", "unexpected: an encoder has no weight of this name"),
]


@dataclass(frozen=True)
class Report:
    """What `load_encoder` did.

    Args:
        source: what was asked for.
        kind: what it turned out to be.
        loaded: number of tensors that the encoder received.
        notes: what was taken for granted, renamed, resampled or adapted.
        unused: every key of the source that has no place in the encoder, and why.
    """

    source: str
    kind: str
    loaded: int
    notes: tuple[str, ...] = ()
    unused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        groups = defaultdict(list)
        for key, reason in self.unused.items():
            groups[reason].append(key)
        lines = [f"{self.source} ({self.kind}): {self.loaded} tensors loaded, {len(self.unused)} not used"]
        lines += self.notes
        for reason, keys in groups.items():
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            lines.append(f"{len(keys)} not used, {reason}: {', '.join(keys[:3])}{more}")
        return "\n  ".join(lines)


def load_encoder(
    source: str | Path, image_size: ImageSize | None = None, in_chans: int | None = None
) -> tuple[VisionTransformer, Report]:
    """A pretrained encoder without a head, in evaluation mode, and a report on every key that did not match.

    Positions stay frozen where they are the fixed sin-cos table, and can be trained where they were learned.

    Args:
        source: a Bamboo checkpoint, `timm:NAME`, `timm:NAME@FILE`, a file in the layout of timm or of the reference MAE
            release, a Hugging Face ViT or ViTMAE folder, or `hf:NAME` of the hub.
        image_size: positions are resampled on their 2-D grid to this size; by default as in the source.
        in_chans: the patch projection is adapted to this number of channels; by default as in the source.

    Raises:
        InputError: where the source cannot be read, or a weight of the encoder is missing or of another shape.
    """
    weights = open_source(source, image_size)
    own = {key.removeprefix("encoder."): tensor for key, tensor in weights.ours.items() if key.startswith("encoder.")}
    notes = [*weights.notes, *_use_fc_norm(own)]
    if in_chans:
        notes += _adapt_channels(own, in_chans)
    encoder = _timm_encoder(weights, own, image_size) if weights.timm_name else _plain_encoder(weights, own)
    table = encoder.pos_embed.detach().clone()
    used = fill(encoder, own, weights)
    if not weights.timm_name:
        encoder.pos_embed.requires_grad_(not torch.allclose(encoder.pos_embed, table, atol=1e-4))
    if image_size:
        notes += _resize(encoder, image_size)
    used |= {"fc_norm.weight", "fc_norm.bias"} - own.keys()  # taken out of them, if they became the final norm
    unused = {key: _reason(name) for key, name in weights.names.items() if name.removeprefix("encoder.") not in used}
    return encoder.eval(), Report(weights.source, weights.kind, len(encoder.state_dict()), tuple(notes), unused)


def load_mae(path: str | Path) -> MaskedAutoencoder:
    """A masked autoencoder in evaluation mode: of a Bamboo checkpoint, a reference MAE file or a Hugging Face ViTMAE.

    What the source does not say (in a reference file the mask ratio and the normalisation) is `build_mae`'s default.

    Raises:
        InputError: where the source cannot be read, has no decoder, or a weight is missing or of another shape.
    """
    return build_from(open_source(path))


def pixel_scale(source: str | Path) -> PixelScale:
    """How the images of a model are standardised: by what its source says, else by `PixelScale`'s defaults.

    Raises:
        InputError: where the source cannot be read.
    """
    return scale_of(open_source(source))


def scale_of(weights: Weights) -> PixelScale:
    """How the images of the model that weights belong to are standardised."""
    projection = weights.ours.get("encoder.patch_embed.proj.weight")
    in_chans = weights.arguments.get("in_chans", 3) if projection is None else projection.shape[1]
    return PixelScale(in_chans, weights.extra.get("mean"), weights.extra.get("std"))


def build_from(weights: Weights) -> MaskedAutoencoder:
    """The masked autoencoder that weights belong to, in evaluation mode. Raises `InputError` as `load_mae` does."""
    if "decoder.embed.weight" not in weights.ours or not weights.options.get("qkv_bias", True):
        raise InputError(f"{weights.source} ({weights.kind}) is no masked autoencoder: it has no decoder of ours")
    try:
        mae = build_mae(**{key: value for key, value in weights.arguments.items() if key in DEFAULTS})
    except TypeError as error:
        raise InputError(f"{weights.source} holds arguments that build no model: {error}") from error
    ours, positions = dict(weights.ours), weights.ours.get("decoder.pos_embed", mae.decoder.pos_embed[:, :0])
    if positions.shape[1] == mae.decoder.pos_embed.shape[1] + 1:  # others give the class token a row, and it is zero
        if positions[:, 0].any():
            raise InputError(f"{weights.source}: row 0 of decoder_pos_embed is not zero, which bamboo's decoder lacks")
        ours["decoder.pos_embed"] = positions[:, 1:]
    fill(mae, ours, weights)
    return mae.eval()


def fill(model: nn.Module, own: dict[str, Tensor], weights: Weights) -> set[str]:
    """Load every weight of a model, and give it the LayerNorm of the source; the names that were used.

    Raises:
        InputError: names the first weight that is missing, of another shape, or of a block that the model lacks.
    """
    wanted = model.state_dict()
    _check_extra(own, wanted, weights)
    for key, tensor in wanted.items():
        found = tuple(own[key].shape) if key in own else "missing"
        if found != tuple(tensor.shape):
            raise InputError(
                f"{weights.source} is a checkpoint of another shape: "
                f"{key} is {found} there, and {tuple(tensor.shape)} in this model"
            )
    model.load_state_dict({key: own[key] for key in wanted})
    for module in model.modules():
        if weights.eps and isinstance(module, nn.LayerNorm):
            module.eps = weights.eps
    return set(wanted)


def _check_extra(own: dict[str, Tensor], wanted: dict[str, Tensor], weights: Weights) -> None:
    """A weight of the trunk that the model lacks would be left out silently, and change every feature."""
    trunk = r"(encoder\.)?(blocks|patch_embed|norm_pre|reg_token|dist_token|cls_token)|decoder\.(blocks|mix)"
    extra = next((key for key in sorted(own.keys() - wanted.keys()) if re.match(trunk, key)), None)
    if extra:
        raise InputError(
            f"{weights.source} is a checkpoint of another shape: it has {extra}, and this model has not; "
            "of an encoder that is no plain ViT give the name, timm:NAME@FILE"
        )


def _reason(name: str) -> str:
    return next(reason for pattern, reason in _REASONS if re.match(pattern, name))


def _plain_encoder(weights: Weights, own: dict[str, Tensor]) -> VisionTransformer:
    arguments = weights.arguments
    in_chans = own.get("patch_embed.proj.weight", torch.empty(0, arguments["in_chans"])).shape[1]
    patches = Patches.of(arguments["image_size"], arguments["patch_size"], in_chans)
    return build_encoder(find_shape(arguments["shape"]), patches, **weights.options)


def _timm_encoder(weights: Weights, own: dict[str, Tensor], image_size: ImageSize | None) -> VisionTransformer:
    if "pos_embed" not in own or "patch_embed.proj.weight" not in own:
        raise InputError(f"{weights.source}: pos_embed or patch_embed.proj.weight is missing: no plain ViT")
    options: dict[str, Any] = {"fc_norm": False, "global_pool": "token" if "cls_token" in own else "avg"}
    options["in_chans"] = own["patch_embed.proj.weight"].shape[1]
    try:
        encoder = timm.create_model(weights.timm_name, num_classes=0, **options)
    except TypeError as error:
        raise InputError(f"timm:{weights.timm_name} is not a plain ViT: {error}") from error
    if not isinstance(encoder, VisionTransformer) or encoder.pos_embed is None:
        raise InputError(f"timm:{weights.timm_name} is a {type(encoder).__name__}, not a plain ViT with positions")
    _check_extra(own, encoder.state_dict(), weights)
    more = own["pos_embed"].shape[1] - encoder.pos_embed.shape[1]
    if more:
        count, patch_size = encoder.patch_embed.num_patches + more, encoder.patch_embed.patch_size[0]
        size = image_side(weights.source, count, patch_size, image_size)
        encoder.set_input_size(Patches.of(size, patch_size).image_size)
    return encoder


def _use_fc_norm(own: dict[str, Tensor]) -> list[str]:
    if "norm.weight" in own or "fc_norm.weight" not in own:
        return []
    for part in ("weight", "bias"):
        own[f"norm.{part}"] = own.pop(f"fc_norm.{part}")
    return ["fc_norm, which followed the pooling, is used as the final norm"]


def _adapt_channels(own: dict[str, Tensor], in_chans: int) -> list[str]:
    weight = own.get("patch_embed.proj.weight")
    if weight is None or weight.shape[1] == in_chans:
        return []
    if weight.shape[1] == 3:
        own["patch_embed.proj.weight"] = adapt_input_conv(in_chans, weight)
    else:  # timm adapts three channels alone; a grey image keeps its response
        own["patch_embed.proj.weight"] = weight.sum(dim=1, keepdim=True).repeat(1, in_chans, 1, 1) / in_chans
    return [f"patch projection adapted from {weight.shape[1]} to {in_chans} channels"]


def _resize(encoder: VisionTransformer, image_size: ImageSize) -> list[str]:
    before = encoder.patch_embed.grid_size
    patches = Patches.of(image_size, encoder.patch_embed.patch_size[0], encoder.patch_embed.proj.in_channels)
    trained = encoder.pos_embed.requires_grad
    encoder.set_input_size(patches.image_size)
    encoder.pos_embed.requires_grad_(trained)
    if patches.grid == before:
        return []
    return [f"positions resampled from {before[0]}x{before[1]} to {patches.grid[0]}x{patches.grid[1]} patches"]
