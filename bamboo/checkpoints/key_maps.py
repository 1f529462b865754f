"""The names that other projects give to weights, and Bamboo's names.

Bamboo's names are those of `MaskedAutoencoder.state_dict()`: `encoder.` and timm's name, `decoder.` and the name in
`bamboo.vision.decoders`. A reader returns Bamboo's name of every key too, so that a weight that is not used can be
reported under the name that stands in the file.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bamboo.shapes import DECODER, SHAPES, Shape, find_shape

Tensors = dict[str, Tensor]

PREFIXES = ("module.", "_orig_mod.", "model.", "mae.", "encoder.")
"""What wrappers put before a name: data parallelism, `torch.compile`, trainers, and Bamboo's training modules."""

# Read in this order; transformers 5 names its layers anew, and writes decoder layers under a third name.
_FROM_HUGGINGFACE = [
    (r"^(vit|beit|model)\.", ""),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder.blocks."),
    (r"^decoder\.decoder_", "decoder."),
    (r"^(encoder\.layer|layers)\.", "encoder.blocks."),
    (r"^embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^embeddings\.", "encoder."),
    (r"^layernorm\.", "encoder.norm."),
    (r"^pooler\.layernorm\.", "encoder.fc_norm."),
    (r"^pooler\.", "encoder.pre_logits."),
    (r"^classifier\.", "encoder.head."),
    (r"\.attention\.(attention\.)?(query|key|value|[qkv]_proj)\.", ".attn.qkv."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]

# What transformers 4 writes and both 4 and 5 read.
_TO_HUGGINGFACE = [
    (r"^encoder\.head\.", "classifier."),
    (r"^encoder\.blocks\.", "vit.encoder.layer."),
    (r"^encoder\.norm\.", "vit.layernorm."),
    (r"^encoder\.pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^encoder\.patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^encoder\.", "vit.embeddings."),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"^decoder\.(?!decoder_|mask_token)", "decoder.decoder_"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
]


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    for rule in rules:
        key = re.sub(*rule, key)
    return key


def bamboo_name(key: str) -> str:
    """Bamboo's name for one of timm, of the reference MAE release, or of Bamboo, whatever wraps it."""
    key = key.replace("_orig_mod.", "")
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    if key == "mask_token":
        return "decoder.mask_token"
    if key.startswith("decoder"):
        return re.sub(r"^decoder_", "decoder.", key)
    return f"encoder.{key}"


def from_huggingface(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Tensors of a Hugging Face ViT, ViTMAE or BEiT under Bamboo's names, and the new name of each key."""
    names = {key: _rename(key, _FROM_HUGGINGFACE) for key in tensors}
    parts: dict[str, Tensors] = defaultdict(dict)  # by name: q, k and v, or the whole tensor under an empty key
    for key, tensor in tensors.items():
        match = re.search(r"\.([qkv])(uery|ey|alue|_proj)\.", key)
        parts[names[key]][match[1] if match else ""] = tensor
    for name, qkv in parts.items():
        if name.endswith(".attn.qkv.bias"):  # BEiT's keys have none: it would add the same to all scores of a query
            qkv.setdefault("k", torch.zeros_like(qkv["q"]))
    return {name: torch.cat([qkv[part] for part in sorted(qkv, key="qkv".find)]) for name, qkv in parts.items()}, names


def to_huggingface(tensors: Tensors) -> Tensors:
    """Tensors of a masked autoencoder, encoder or classifier under the names of Hugging Face's ViTMAE and ViT."""
    renamed: Tensors = {}
    for key, tensor in _with_class_row(tensors).items():
        name = _rename(key, _TO_HUGGINGFACE)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            renamed[name] = tensor
    return renamed


def to_reference(tensors: Tensors) -> Tensors:
    """Tensors of a masked autoencoder under the names of the reference MAE release."""
    plain = {key.removeprefix("encoder."): tensor for key, tensor in _with_class_row(tensors).items()}
    return {re.sub(r"^decoder\.(?!mask_token)", "decoder_", k).removeprefix("decoder."): t for k, t in plain.items()}


def _with_class_row(tensors: Tensors) -> Tensors:
    """Others give the class token a row of the decoder's positions, which is zero."""
    positions = tensors.get("decoder.pos_embed")
    if positions is None:
        return tensors
    return {**tensors, "decoder.pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}


# Keys of the config.json of transformers' ViT and ViTMAE: of a `Shape`, with `decoder_` before them too, and others.
STACKS = {"shape": ("", SHAPES["vit-base"]), "decoder_shape": ("decoder_", DECODER)}
SHAPE_KEYS = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
CONFIG_KEYS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "layer_norm_eps",
    "mask_ratio": "mask_ratio",
    "norm_pix": "norm_pix_loss",
}
CONFIG_DEFAULTS = {"image_size": 224, "patch_size": 16, "num_channels": 3, "qkv_bias": True, "layer_norm_eps": 1e-12}
CONFIG_DEFAULTS |= {"mask_ratio": 0.75, "norm_pix_loss": False}
"""Those of transformers, as are the shapes in `STACKS`."""


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model in the config of a Hugging Face ViT, ViTMAE or BEiT."""
    config = {**CONFIG_DEFAULTS, **config}
    if not isinstance(config["patch_size"], int):
        config["patch_size"] = config["patch_size"][0]
    arguments = {key: config[name] for key, name in CONFIG_KEYS.items()}
    for key, (prefix, default) in STACKS.items():
        sizes = {size: config.get(prefix + name, getattr(default, size)) for size, name in SHAPE_KEYS.items()}
        arguments[key] = Shape.of(**sizes)
    return arguments


def to_config(arguments: Mapping[str, Any], decoder: bool) -> dict[str, Any]:
    """The config of a Hugging Face ViTMAE, or without a decoder of a ViT."""
    config = {name: arguments[key] for key, name in CONFIG_KEYS.items()}
    for key, (prefix, _) in STACKS.items():
        if key == "shape" or decoder:
            config |= {prefix + name: getattr(find_shape(arguments[key]), size) for size, name in SHAPE_KEYS.items()}
    return config
