"""The names that others give to weights, and ours.

Ours are those of `MaskedAutoencoder.state_dict()`: `encoder.` and timm's name, `decoder.` and the name in
`bamboo.vision.decoders`. A reader maps a name of the file to ours, and says so key by key, so that whatever does not
match later can be reported under the name that stands in the file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

Weights = dict[str, Tensor]

PREFIXES = ("module.", "_orig_mod.", "model.", "mae.", "encoder.")
"""What wrappers put before a name: data parallelism, `torch.compile`, trainers, and our own training modules."""

# Read in this order; transformers 5 names its layers anew, and writes decoder layers under a third name.
_FROM_HUGGINGFACE = [
    (r"^(vit|model)\.", ""),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder.blocks."),
    (r"^decoder\.decoder_", "decoder."),
    (r"^(encoder\.layer|layers)\.", "encoder.blocks."),
    (r"^embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^embeddings\.", "encoder."),
    (r"^layernorm\.", "encoder.norm."),
    (r"^(pooler|classifier)\.", r"encoder.head.\1."),
    (r"\.attention\.(attention\.)?(query|key|value|[qkv]_proj)\.", ".attn.qkv."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]

# What transformers 4 writes and both 4 and 5 read.
_TO_HUGGINGFACE = [
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


def _apply(rules: list[tuple[str, str]], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def is_huggingface(keys: Iterable[str]) -> bool:
    """Whether these are the names of a Hugging Face ViT."""
    return any("embeddings.patch_embeddings." in key for key in keys)


def our_name(key: str) -> str:
    """Our name for one of timm, of the reference MAE release, or of Bamboo, whatever wraps it."""
    key = key.replace("_orig_mod.", "")
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    if key == "mask_token":
        return "decoder.mask_token"
    if key.startswith("decoder"):
        return re.sub(r"^decoder_", "decoder.", key)
    return f"encoder.{key}"


def from_timm(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Weights under our names, and our name of every key: of timm, of the reference MAE release, or of Bamboo."""
    names = {key: our_name(key) for key in weights}
    return {names[key]: tensor for key, tensor in weights.items()}, names


def from_huggingface(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Weights of a Hugging Face ViT or ViTMAE under our names, and our name of every key."""
    names = {key: _apply(_FROM_HUGGINGFACE, key) for key in weights}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in weights.items():
        part = re.search(r"\.([qkv])(uery|ey|alue|_proj)\.", key)
        parts[names[key]][part[1] if part else ""] = tensor
    return {name: torch.cat([part[i] for i in sorted(part, key="qkv".find)]) for name, part in parts.items()}, names


def to_reference(ours: Weights) -> Weights:
    """A masked autoencoder's weights under the names of the reference MAE release."""
    ours = {**ours, "decoder.pos_embed": _with_class_row(ours["decoder.pos_embed"])}
    plain = {key.removeprefix("encoder."): tensor for key, tensor in ours.items()}
    return {re.sub(r"^decoder\.(?!mask_token)", "decoder_", k).removeprefix("decoder."): t for k, t in plain.items()}


def to_huggingface(ours: Weights) -> Weights:
    """The weights of a masked autoencoder, or of an encoder alone, under the names of Hugging Face's ViTMAE."""
    theirs: Weights = {}
    if "decoder.pos_embed" in ours:
        ours = {**ours, "decoder.pos_embed": _with_class_row(ours["decoder.pos_embed"])}
    for key, tensor in ours.items():
        name = _apply(_TO_HUGGINGFACE, key)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
        else:
            theirs[name] = tensor
    return theirs


def _with_class_row(positions: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
