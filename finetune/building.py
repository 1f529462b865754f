"""The encoder of a classifier: a pretrained one, checked against the configuration, or a fresh one at a shape."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from bamboo.checkpoints.loading import classifier_tensors, load_encoder
from bamboo.checkpoints.reading import read_source
from bamboo.checkpoints.starting import check_encoder
from bamboo.errors import InputError
from bamboo.reports import Report
from bamboo.shapes import Patches, Shape, find_shape
from bamboo.tables import table
from bamboo.vision.encoder import build_encoder
from bamboo.vision.kv_compression import KVCompression, compress, compression_of
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
    **options: Any,
) -> tuple[VisionTransformer, PixelScale]:
    """An encoder without a head, and how its images are standardised; for the arguments see `Classifier`.

    `options` are those of `options_of`, by which a fresh encoder is built.

    Raises:
        InputError: where the source cannot be read or differs from what is asked for, or a fresh encoder has no sizes.
    """
    if source is None or source == SCRATCH:
        if shape is None or patch_size is None:
            raise InputError("without a pretrained encoder give model.init_args.shape and model.init_args.patch_size")
        patches = Patches.of(image_size, patch_size, in_chans)
        return build_encoder(find_shape(shape), patches, **options), PixelScale(in_chans)
    checkpoint = read_source(source, image_size)
    encoder, report = load_encoder(checkpoint, image_size, in_chans)
    wanted = {name: options[name] for name in ("layer_scale", "attention") if options.get(name) not in (None, "plain")}
    check_encoder(str(source), encoder, None if shape is None else find_shape(shape), patch_size, wanted)
    scale = checkpoint.scale
    if options.get("kv_compression"):
        report = _compress(encoder, report, KVCompression.of(options["kv_compression"]))
    print(report)
    return encoder, scale if scale.mean.numel() == in_chans else PixelScale(in_chans)


def _compress(encoder: VisionTransformer, report: Report, wanted: KVCompression) -> Report:
    """Compress keys and values, and report the weights that are new; an encoder that does so must agree."""
    has, asked = compression_of(encoder), {"ratio": wanted.ratio, "from_block": wanted.first(len(encoder.blocks))}
    if has is None:
        return replace(report, fresh=tuple(compress(encoder, wanted)))
    if has != asked:
        raise InputError(f"{report.source} has kv_compression {has}, and model.init_args.kv_compression says {asked}")
    return report


def keep_head_of(source: str | Path | None, model: VisionTransformer) -> list[str]:
    """Give a classifier the head of another one, with its norm or pooling; the names of its classes.

    Raises:
        InputError: where the source has no head, or another one than the model.
    """
    checkpoint = None if source in (None, SCRATCH) else read_source(source)
    if checkpoint is None or checkpoint.head is None:
        raise InputError(f"keep_head: {source} has no head: give a classifier as encoder, or set keep_head to false")
    tensors, parts = classifier_tensors(checkpoint), ("head.", "fc_norm.", "attn_pool.")
    expected = {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
    for name, weight in expected.items():
        shape = tuple(tensors[name].shape) if name in tensors else "missing"
        if checkpoint.head.pool != model.global_pool or shape != tuple(weight.shape):
            raise InputError(
                f"keep_head: the head of {source} has pool {checkpoint.head.pool} and {name} {shape}, and here they "
                f"are {model.global_pool} and {tuple(weight.shape)}: set pool, num_classes and batch_norm alike"
            )
    model.load_state_dict({name: tensors[name] for name in expected}, strict=False)
    print(f"  the head is kept: {', '.join(expected)}")
    return list(checkpoint.head.classes)


def learning_rates(groups: Sequence[Mapping[str, Any]], peak: float) -> str:
    """A table of the learning rate of each layer at the peak of the schedule, from the embedding to the head.

    Args:
        groups: of an optimizer, each with its `layer`, `lr_scale` and `params`.
        peak: learning rate of the head.
    """
    counts: dict[str, int] = defaultdict(int)
    for group in groups:
        counts[group["layer"]] += sum(parameter.numel() for parameter in group["params"])
    scales = {group["layer"]: group["lr_scale"] for group in groups}
    rows = [(layer, f"{counts[layer]:,}", f"{scale:.3g}", f"{peak * scale:.3g}") for layer, scale in scales.items()]
    return table([("layer", "parameters", "scale", "learning rate"), *rows])
