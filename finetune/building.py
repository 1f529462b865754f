"""The encoder of a classifier: a pretrained one, checked against the configuration, or a fresh one at a shape."""

from collections.abc import Sequence
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer

from bamboo.checkpoints import load_encoder, pixel_scale
from bamboo.errors import InputError
from bamboo.shapes import Patches, Shape, find_shape
from bamboo.vision.encoder import Init, build_encoder, shape_of
from bamboo.vision.pixels import PixelScale

SCRATCH = "scratch"
"""The word that asks for fresh weights in place of a pretrained encoder."""

ImageSize = int | tuple[int, int]


def make_encoder(
    source: str | Path | None,
    shape: str | Shape | None,
    image_size: ImageSize,
    patch_size: int | None,
    in_chans: int,
    init: Init = "mae",
) -> tuple[VisionTransformer, PixelScale]:
    """An encoder without a head, and how its images are standardised.

    Args:
        source: anything that `load_encoder` reads; `scratch` or None for fresh weights.
        shape: depth, width and heads, or a name; by default those of the source.
        image_size: height and width in pixels, to which positions are resampled.
        patch_size: side of a patch in pixels; by default that of the source.
        in_chans: channels, to which the patch projection is adapted.
        init: how fresh weights are drawn, see `bamboo.vision.encoder.init_encoder`.

    Raises:
        InputError: where the source cannot be read or is of another shape or patch, or a fresh encoder has no sizes.
    """
    if source is None or source == SCRATCH:
        if shape is None or patch_size is None:
            raise InputError("without a pretrained encoder give model.init_args.shape and model.init_args.patch_size")
        size = Patches.of(image_size, patch_size, in_chans)
        return build_encoder(find_shape(shape), size, init), PixelScale(in_chans)
    encoder, report = load_encoder(source, image_size, in_chans)
    found, patch = shape_of(encoder), encoder.patch_embed.patch_size[0]
    wanted = find_shape(shape) if shape is not None else found
    if found != wanted:
        raise InputError(f"{source} is {_words(found)}, and model.init_args.shape says {_words(wanted)}")
    if patch_size is not None and patch != patch_size:
        raise InputError(f"{source} has patches of {patch} pixels, and model.init_args.patch_size says {patch_size}")
    scale = pixel_scale(source)
    print(report)
    return encoder, scale if scale.mean.numel() == in_chans else PixelScale(in_chans)


def class_order(model: Sequence[str], data: Sequence[str]) -> list[int]:
    """Place in `model` of each class of `data`, by name.

    Raises:
        InputError: where the names are not the same, naming some that are in one of them alone.
    """
    parts = []
    for where, names in ("model", set(model) - set(data)), ("data", set(data) - set(model)):
        some = ", ".join(map(repr, sorted(names)[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
        parts += [f"only in the {where}: {some}"] if names else []
    if parts:
        raise InputError(f"the classes of the model are not those of the data; {'; '.join(parts)}")
    places = {name: place for place, name in enumerate(model)}
    return [places[name] for name in data]


def _words(shape: Shape) -> str:
    return f"{shape} with {shape.heads} heads"
