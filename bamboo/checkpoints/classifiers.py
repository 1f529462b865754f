"""Reading fine-tuned classifiers: Bamboo's checkpoints and exports, and Hugging Face's classification models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bamboo.checkpoints.key_maps import from_huggingface
from bamboo.checkpoints.loading import fill, scale_of
from bamboo.checkpoints.sources import Weights, open_source, ratio
from bamboo.errors import InputError
from bamboo.files import read_file
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder
from bamboo.vision.heads import Pool, plain_head
from bamboo.vision.pixels import PixelScale


@dataclass(frozen=True)
class Head:
    """What stands above an encoder.

    Args:
        pool: how tokens become one vector, see `bamboo.vision.heads.attach_head`.
        classes: their names, in the order of the logits.
    """

    pool: Pool
    classes: tuple[str, ...]


def read_head(source: str | Path) -> Head | None:
    """The head of a classifier, None where the source is anything else.

    Raises:
        InputError: where the source is a file that cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return _huggingface_head(path)
    content = read_file(path) if path.is_file() else {}
    told = content.get("hyper_parameters")
    if not isinstance(told, Mapping) or "num_classes" not in told:
        return None
    return Head(told["pool"], tuple(content.get("classes") or told["classes"]))


def load_classifier(source: str | Path) -> tuple[VisionTransformer, Head, PixelScale]:
    """A classifier in evaluation mode, its head, and how its images are standardised.

    A batch norm before the head is folded into it, so that the model is one of timm's.

    Args:
        source: a checkpoint of `Classifier`, what `bamboo export` wrote of one, or a Hugging Face folder of a
            `ViTForImageClassification`.

    Raises:
        InputError: where the source cannot be read or holds no classifier.
    """
    head = read_head(source)
    if head is None:
        raise InputError(f"{source} holds no classifier: give a checkpoint of a fine-tuned model")
    weights = open_classifier(source)
    told = weights.arguments
    patches = Patches.of(told["image_size"], told["patch_size"], told["in_chans"])
    options = {**weights.options, "num_classes": len(head.classes), "global_pool": head.pool}
    model = build_encoder(find_shape(told["shape"]), patches, **options)
    fill(model, head_and_trunk(weights), weights)
    return model.eval(), head, scale_of(weights)


def open_classifier(source: str | Path) -> Weights:
    """The weights of a classifier under our names. Raises `InputError` where they cannot be read."""
    path = Path(source)
    if path.is_dir() and _config(path).get("model_type") == "beit":
        return _open_beit(path)
    return open_source(source)


def head_and_trunk(weights: Weights) -> dict[str, Tensor]:
    """Weights under timm's names, with a plain linear head."""
    own = {key.removeprefix("encoder."): tensor for key, tensor in weights.ours.items()}
    own = {key.replace("head.classifier.", "head."): tensor for key, tensor in own.items()}
    return plain_head(own)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): copy or download it again") from error
    return content if isinstance(content, dict) else {}


def _huggingface_head(folder: Path) -> Head | None:
    config = _config(folder)
    if not any(name.endswith("ForImageClassification") for name in config.get("architectures") or []):
        return None
    named = config.get("id2label", {})
    classes = tuple(named[key] for key in sorted(named, key=int)) or ("0", "1")  # transformers' default is two labels
    return Head("avg" if config["model_type"] == "beit" else "token", classes)


def _open_beit(folder: Path) -> Weights:
    """A ViT that pools its patches, as `bamboo export` writes it for transformers: a BEiT with absolute positions."""
    config, content = _config(folder), read_file(folder / "model.safetensors")
    tensors: dict[str, Tensor] = content.get("model", content)
    if not config.get("use_absolute_position_embeddings") or config.get("layer_scale_init_value"):
        raise InputError(f"{folder} is a BEiT with relative positions or layer scale, which is no plain ViT")
    for key in [key for key in tensors if key.endswith(".query.bias")]:
        tensors[key.replace(".query.", ".key.")] = torch.zeros_like(tensors[key])
    head = {f"encoder.fc_norm.{part}": tensors.pop(f"beit.pooler.layernorm.{part}") for part in ("weight", "bias")}
    ours, names = from_huggingface({key.replace("beit.", "vit.", 1): tensor for key, tensor in tensors.items()})
    arguments = {
        "shape": {
            "depth": config["num_hidden_layers"],
            "width": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "mlp_ratio": ratio(config["intermediate_size"], config["hidden_size"]),
        },
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_chans": config["num_channels"],
    }
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    extra = {part: processor[f"image_{part}"] for part in ("mean", "std")}
    kind, eps = "a Hugging Face BEiT", config["layer_norm_eps"]
    return Weights(str(folder), kind, {**ours, **head}, names, arguments, extra=extra, eps=eps)
