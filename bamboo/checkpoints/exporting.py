"""Writing models in the formats of others: timm, Hugging Face, the reference MAE."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bamboo.checkpoints.classifiers import Head, head_and_trunk, open_classifier, read_head
from bamboo.checkpoints.key_maps import to_huggingface, to_reference
from bamboo.checkpoints.loading import build_from, load_encoder, scale_of
from bamboo.checkpoints.sources import DEFAULTS, Weights, open_source
from bamboo.errors import InputError, unknown
from bamboo.files import atomic_write, read_file, write_weights
from bamboo.shapes import SHAPES, Patches, default_patch_size, find_shape
from bamboo.vision.mae import MaskedAutoencoder
from bamboo.vision.pixels import PixelScale
from bamboo.vision.timm_models import timm_name


def export(checkpoint: str | Path, format: Literal["timm", "hf", "reference"], out: str | Path) -> list[Path]:
    """Write a model into folder `out` in a format of others; the files that were written.

    Every file appears complete or not at all, and carries the arguments of the model, so that `load_encoder`,
    `load_mae` and `load_classifier` read it back exactly. A classifier is written whole, with its head, for `timm` and
    for `hf`: as transformers' ViTForImageClassification, or, where it pools its patches, which that class cannot do, as
    the BeitForImageClassification that computes the same.

    Args:
        checkpoint: anything that `load_mae` or `load_classifier` reads; for timm, an encoder alone will do.
        format: `timm` (the encoder), `hf` (transformers' ViTMAEForPreTraining) or `reference` (the MAE release).
        out: a folder, made if it is missing.

    Raises:
        InputError: where the checkpoint cannot be read, or the format cannot express the model.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    head = read_head(checkpoint)
    if head is not None:
        return _classifier(open_classifier(checkpoint), head, format, Path(out))
    return FORMATS[format](open_source(checkpoint), Path(out))


def timm_call(weights: str | Path) -> str:
    """The call of timm that builds and loads what `export` wrote: run it after `import bamboo.vision`.

    Raises:
        InputError: where the file is not one that `export` wrote for timm.
    """
    told = read_file(weights).get("hyper_parameters", {})
    if "shape" not in told:
        raise InputError(f"{weights} does not say its shape: only the files that `bamboo export` writes do")
    shape, size = find_shape(told["shape"]), Patches.of(told["image_size"], told["patch_size"], told["in_chans"])
    name = next((name for name, known in SHAPES.items() if known == shape), "")
    options: dict[str, Any] = {}
    if not name.startswith("bamboo") and name != "mid-base":  # timm's own names come with a head
        options["num_classes"] = 0
    if not name:
        name = "vit-base"
        options |= {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        options |= {"mlp_ratio": shape.mlp_ratio}
    usual = {"img_size": (224, 224), "patch_size": default_patch_size(name), "in_chans": 3}
    if "num_classes" in told:
        options |= {"num_classes": told["num_classes"], "global_pool": told["pool"]}
    given = {"img_size": size.image_size, "patch_size": size.patch_size, "in_chans": size.in_chans}
    options |= {key: value for key, value in given.items() if value != usual[key]}
    written = "".join(f", {key}={value!r}" for key, value in options.items())
    return f'timm.create_model("{timm_name(name)}"{written}, checkpoint_path={str(weights)!r})'


def huggingface_class(folder: str | Path) -> str:
    """The class of transformers that reads what `export` wrote for Hugging Face."""
    name: str = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    return name


def _arguments(weights: Weights) -> dict[str, Any]:
    """All arguments of `build_mae` as plain data, and what else the source says."""
    arguments = {**DEFAULTS, **weights.arguments}
    shapes = {key: asdict(find_shape(arguments[key])) for key in ("shape", "decoder_shape")}
    return {**arguments, **shapes, **weights.extra, "layer_norm_eps": weights.eps or 1e-6}


def _timm(weights: Weights, out: Path) -> list[Path]:
    if weights.timm_name or not weights.options.get("qkv_bias", True):
        raise InputError(f"{weights.source} is {weights.kind}: only plain ViTs of Bamboo's own shapes are exported")
    encoder, _ = load_encoder(weights.source)
    return [write_weights(out / "model.safetensors", encoder.state_dict(), _arguments(weights))]


def _classifier(weights: Weights, head: Head, format: str, out: Path) -> list[Path]:
    """A classifier with its head, of which a batch norm becomes a part."""
    plain, arguments = head_and_trunk(weights), _arguments(weights)
    sizes = ("shape", "image_size", "patch_size", "in_chans", "mean", "std", "layer_norm_eps")
    told: dict[str, Any] = {key: arguments[key] for key in sizes if key in arguments}
    told |= {"num_classes": len(head.classes), "pool": head.pool, "classes": head.classes}
    if format == "timm":
        return [write_weights(out / "model.safetensors", plain, told)]
    height, width = Patches.of(told["image_size"], told["patch_size"]).image_size
    if format == "reference":
        raise InputError(f"{weights.source} is a classifier, which the reference MAE release has no format for")
    if head.pool == "map":
        raise InputError(f"{weights.source} pools by attention, which transformers' ViT does not: export as timm")
    if height != width:
        raise InputError(f"format {format} knows square images alone, not {height}x{width}: export as timm")
    config = {**_vit(told, height), **_labels(head), **(BEIT if head.pool == "avg" else VIT)}
    return [
        write_weights(out / "model.safetensors", _huggingface_classifier(plain, head.pool), told),
        _json(out / "config.json", config),
        _json(out / "preprocessor_config.json", _processor(scale_of(weights), height)),
    ]


def _huggingface_classifier(plain: dict[str, Tensor], pool: str) -> dict[str, Tensor]:
    """A classifier's weights under the names of transformers' ViT, or of its BEiT if the patches are pooled."""
    above = ("head.", "fc_norm.")
    theirs = to_huggingface({f"encoder.{key}": t for key, t in plain.items() if not key.startswith(above)})
    theirs |= {f"classifier.{part}": plain[f"head.{part}"] for part in ("weight", "bias")}
    if pool == "token":
        return theirs
    # A bias of the keys adds the same to all scores of a query, which softmax does not see: BEiT has none.
    theirs = {key.replace("vit.", "beit.", 1): t for key, t in theirs.items() if not key.endswith(".key.bias")}
    return theirs | {f"beit.pooler.layernorm.{part}": plain[f"fc_norm.{part}"] for part in ("weight", "bias")}


def _labels(head: Head) -> dict[str, Any]:
    names = {str(number): name for number, name in enumerate(head.classes)}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}


def _reference(weights: Weights, out: Path) -> list[Path]:
    mae, arguments = _mae_of_he(weights, "reference"), _arguments(weights)
    named = {key: tensor.clone() for key, tensor in to_reference(mae.state_dict()).items()}
    path = out / "checkpoint.pth"
    with atomic_write(path) as temporary:
        torch.save({"model": named, "hyper_parameters": arguments}, temporary)
    return [path, write_weights(out / "checkpoint.safetensors", named, arguments)]


def _huggingface(weights: Weights, out: Path) -> list[Path]:
    mae, arguments = _mae_of_he(weights, "hf"), _arguments(weights)
    path = write_weights(out / "model.safetensors", to_huggingface(mae.state_dict()), arguments)
    side = int(mae.encoder.patch_embed.img_size[0])
    processor, config = _processor(scale_of(weights), side), _config(arguments, side)
    return [path, _json(out / "config.json", config), _json(out / "preprocessor_config.json", processor)]


def _processor(scale: PixelScale, side: int) -> dict[str, Any]:
    """The preprocessor_config.json of a ViT."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 6) for value in scale.mean.flatten().tolist()],
        "image_std": [round(value / 255, 6) for value in scale.std.flatten().tolist()],
    }


def _mae_of_he(weights: Weights, format: str) -> MaskedAutoencoder:
    """The model, if it is a masked autoencoder as in He et al. 2022: other formats know no other."""
    arguments = {**DEFAULTS, **weights.arguments}
    if arguments["decoder"] != "self":
        raise InputError(f"format {format} has no cross-attention decoder: export the encoder alone, as timm")
    height, width = Patches.of(arguments["image_size"], arguments["patch_size"]).image_size
    if height != width:
        raise InputError(f"format {format} knows square images alone, not {height}x{width}: export as timm")
    return build_from(weights)


def _config(arguments: dict[str, Any], side: int) -> dict[str, Any]:
    decoder = find_shape(arguments["decoder_shape"])
    return {
        **_vit(arguments, side),
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": decoder.mlp_width,
        "mask_ratio": arguments["mask_ratio"],
        "norm_pix_loss": arguments["norm_pix"],
    }


def _vit(arguments: dict[str, Any], side: int) -> dict[str, Any]:
    """What the configs of transformers' ViT, ViTMAE and BEiT have in common."""
    encoder = find_shape(arguments["shape"])
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": arguments["layer_norm_eps"],
        "image_size": side,
        "patch_size": arguments["patch_size"],
        "num_channels": arguments["in_chans"],
        "qkv_bias": True,
        "torch_dtype": "float32",
    }


def _json(path: Path, content: dict[str, Any]) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


VIT: dict[str, Any] = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
BEIT: dict[str, Any] = {
    "architectures": ["BeitForImageClassification"],
    "model_type": "beit",
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.0,
    "drop_path_rate": 0.0,
}
FORMATS: dict[str, Callable[[Weights, Path], list[Path]]] = {
    "timm": _timm,
    "hf": _huggingface,
    "reference": _reference,
}
