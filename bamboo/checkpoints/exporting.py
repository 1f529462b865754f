"""Writing models in the formats of others: timm's hub, transformers, the reference MAE."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from bamboo.checkpoints.key_maps import Tensors, to_config, to_huggingface, to_reference
from bamboo.checkpoints.loading import classifier_tensors, load_encoder, load_mae
from bamboo.checkpoints.reading import Checkpoint, Head, read_source
from bamboo.checkpoints.sources import read_config
from bamboo.errors import InputError, unknown
from bamboo.files import atomic_write, write_json, write_weights
from bamboo.shapes import find_shape
from bamboo.vision.timm_models import PRETRAINED_CFG

FORMATS = ("timm", "hf", "reference")
TEXT_HEADS = {
    "ForMaskedLM": "ForMaskedLM",
    "ForSequenceClassification": "ForSequenceClassification",
    "ForCausalLM": "ForCausalLM",
    "LMHeadModel": "ForCausalLM",
}
"""By the end of the name of a class of transformers, that of the one that chooses it."""


def export(checkpoint: str | Path, format: Literal["timm", "hf", "reference"], out: str | Path) -> list[Path]:
    """Write a model into folder `out` in a format of others; the files that were written.

    Every file appears complete or not at all, and carries the arguments of the model, so that `load_encoder`,
    `load_mae` and `load_classifier` read it back exactly.

    Args:
        checkpoint: anything that `load_mae` or `load_classifier` reads; for timm, an encoder alone will do.
        format: `timm`, the layout of its hub: the encoder, or the classifier with its head; `hf`, transformers'
            ViTMAEForPreTraining, or of a classifier the ViTForImageClassification, or, where it does not read the class
            token of a square image or has layer scale, which that class cannot do, timm's layout, which transformers
            reads too;
            `reference`, the MAE release.
        out: a folder, made if it is missing.

    Raises:
        InputError: where the checkpoint cannot be read, or the format cannot express the model.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    model = read_source(checkpoint)
    if model.arguments["attention"] != "plain":
        raise InputError(f"{checkpoint} has attention {model.arguments['attention']}, which no format of others knows")
    if model.arguments["kv_compression"]:
        raise InputError(f"{checkpoint} compresses keys and values, which no format of others knows")
    if format == "timm":
        return _write_timm(model, Path(out))
    if model.head is None:
        return _write_mae(model, format, Path(out))
    if format == "reference":
        raise InputError(f"{checkpoint} is a classifier, which the reference MAE release has no format for")
    if model.head.pool != "token" or len(set(model.patches.image_size)) > 1 or model.arguments["layer_scale"]:
        return _write_timm(model, Path(out))
    tensors = {f"encoder.{key}": tensor for key, tensor in classifier_tensors(model).items()}
    return _write_vit(model, to_huggingface(tensors), Path(out))


def loading_calls(folder: str | Path, name: str | None = None) -> list[str]:
    """The calls of timm and transformers that load an exported folder, as `name` if the folder will have another."""
    config, name = read_config(Path(folder) / "config.json"), name or str(folder)
    if "architecture" in config:
        auto = "AutoModelForImageClassification" if config["num_classes"] else "AutoModel"
        timms = f'timm.create_model("local-dir:{name}", pretrained=True)'
        return [timms, f'transformers.{auto}.from_pretrained("{name}")']
    kind = config["architectures"][0]
    if config["model_type"] in ("vit", "vit_mae"):
        return [f'transformers.{kind}.from_pretrained("{name}")']
    auto = next((f"AutoModel{head}" for end, head in TEXT_HEADS.items() if kind.endswith(end)), "AutoModel")
    return [f'transformers.{call}.from_pretrained("{name}")' for call in (auto, "AutoTokenizer")]


def _write_timm(model: Checkpoint, out: Path) -> list[Path]:
    """config.json and model.safetensors of timm's hub: its base ViT, of which every size is given anew."""
    if model.architecture:
        raise InputError(f"{model.source} is {model.kind}: only plain ViTs of Bamboo's own shapes are exported")
    arguments, patches = _arguments(model), model.patches
    shape, head = find_shape(arguments["shape"]), model.head or Head("token", ())
    tensors = classifier_tensors(model) if model.head else load_encoder(model)[0].state_dict()
    more = {"qkv_bias": arguments["qkv_bias"], "init_values": arguments["layer_scale"]}
    sizes = {"img_size": patches.image_size, "patch_size": patches.patch_size, "in_chans": patches.in_chans}
    widths = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads, "mlp_ratio": shape.mlp_ratio}
    mean, std = model.scale.statistics().values()
    crop = PRETRAINED_CFG["crop_pct"] if max(patches.image_size) <= 224 else 1.0  # as `evaluation_view` crops
    pixels = {"input_size": (patches.in_chans, *patches.image_size), "mean": mean, "std": std, "crop_pct": crop}
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": len(head.classes),
        "num_features": shape.width,
        "global_pool": head.pool,
        "model_args": {**sizes, **widths, "global_pool": head.pool, **more},
        "pretrained_cfg": {**PRETRAINED_CFG, **pixels, "fixed_input_size": True, "num_classes": len(head.classes)},
        **({"label_names": head.classes} if head.classes else {}),
    }
    return [write_weights(out / "model.safetensors", tensors, arguments), write_json(out / "config.json", config)]


def _write_mae(model: Checkpoint, format: str, out: Path) -> list[Path]:
    """A masked autoencoder as in He et al. 2022: other formats know no other."""
    if model.arguments["decoder"] != "self":
        raise InputError(f"format {format} has no cross-attention decoder: export the encoder alone, as timm")
    if model.arguments["layer_scale"]:
        raise InputError(f"format {format} has no layer scale: export the encoder alone, as timm")
    height, width = model.patches.image_size
    if height != width:
        raise InputError(f"format {format} knows square images alone, not {height}x{width}: export as timm")
    tensors = load_mae(model).state_dict()
    if format == "hf":
        return _write_vit(model, to_huggingface(tensors), out)
    renamed = {key: tensor.clone() for key, tensor in to_reference(tensors).items()}
    with atomic_write(out / "checkpoint.pth") as temporary:
        torch.save({"model": renamed, "hyper_parameters": _arguments(model)}, temporary)
    return [out / "checkpoint.pth"]


def _write_vit(model: Checkpoint, tensors: Tensors, out: Path) -> list[Path]:
    """A folder of transformers' ViTForImageClassification, or, without a head, of its ViTMAEForPreTraining."""
    arguments, (side, _), (mean, std) = _arguments(model), model.patches.image_size, model.scale.statistics().values()
    config = to_config({**arguments, "image_size": side}, decoder=model.head is None)
    config |= {"architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae"}
    if model.head:
        config |= {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
        config["id2label"] = dict(enumerate(model.head.classes))
        config["label2id"] = {name: number for number, name in enumerate(model.head.classes)}
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "image_mean": mean,
        "image_std": std,
    }
    return [
        write_weights(out / "model.safetensors", tensors, arguments),
        write_json(out / "config.json", config),
        write_json(out / "preprocessor_config.json", processor),
    ]


def _arguments(model: Checkpoint) -> dict[str, Any]:
    """What is known of a model, as plain data that `read_source` reads back."""
    shapes = {key: asdict(find_shape(model.arguments[key])) for key in ("shape", "decoder_shape")}
    arguments = {**model.arguments, **shapes, "layer_norm_eps": model.arguments["layer_norm_eps"] or 1e-6}
    head = model.head
    return arguments | ({"num_classes": len(head.classes), "pool": head.pool, "classes": head.classes} if head else {})
