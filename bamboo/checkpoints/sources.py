"""Where weights come from: each kind of source, read into our names together with the sizes of the model.

The kinds are a Bamboo checkpoint, `timm:NAME`, `timm:NAME@FILE`, a file in the layout of timm or of the reference MAE
release, and a Hugging Face folder or hub name (`hf:NAME`).
"""

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from bamboo import vision as vision  # importing it registers our names with timm
from bamboo.checkpoints.key_maps import PREFIXES, from_huggingface, from_timm, is_huggingface
from bamboo.errors import InputError, unknown
from bamboo.files import read_file
from bamboo.shapes import SHAPES, Shape
from bamboo.vision.mae import build_mae

DEFAULTS = {name: option.default for name, option in inspect.signature(build_mae).parameters.items()}


@dataclass(frozen=True)
class Weights:
    """Weights under our names, and what is known of the model that they belong to.

    Args:
        source: what the caller asked for.
        kind: what it turned out to be, for people.
        ours: tensors under our names.
        names: our name of every key of the file.
        arguments: of `build_mae`, as far as the source tells.
        options: further arguments of the encoder.
        extra: the mean and deviation of its pixels, where the source says them.
        timm_name: timm's name of the encoder, where the source gives one.
        eps: of every LayerNorm, if the source says.
        notes: what was taken for granted.
    """

    source: str
    kind: str
    ours: dict[str, Tensor]
    names: dict[str, str]
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    timm_name: str = ""
    eps: float | None = None
    notes: tuple[str, ...] = ()


def open_source(source: str | Path, image_size: int | tuple[int, int] | None = None) -> Weights:
    """Read weights from any kind of source. `image_size` helps where a file has a grid that is not square.

    Raises:
        InputError: one line that names the source and says what is wrong with it.
    """
    text = str(source)
    scheme, _, rest = text.partition(":")
    if Path(text).is_dir():
        return _huggingface(text, Path(text))
    if Path(text).exists() or ":" not in text:
        return _file(text, Path(text), image_size)
    if scheme == "timm":
        return _timm(text, *rest.partition("@")[::2])
    if scheme == "hf":
        return _huggingface(text, Path(rest) if Path(rest).is_dir() else _download(rest))
    raise unknown("kind of source", scheme, ("timm", "hf"))


def _file(source: str, path: Path, image_size: int | tuple[int, int] | None) -> Weights:
    content = read_file(path)
    tensors = _tensors(source, content.get("state_dict", content.get("model", content)))
    if is_huggingface(tensors):
        return _huggingface(source, path.parent, tensors)
    ours, names = from_timm(tensors)
    told = content.get("hyper_parameters")
    if isinstance(told, Mapping):
        arguments = {key: told.get(key, default) for key, default in DEFAULTS.items()}
        extra = {key: told[key] for key in ("mean", "std") if told.get(key)}
        kind = "a Bamboo checkpoint" if "state_dict" in content else "weights that Bamboo exported"
        return Weights(source, kind, ours, names, arguments, extra=extra, eps=told.get("layer_norm_eps"))
    arguments, notes = sizes(source, ours, image_size)
    kind = "a reference MAE file" if "decoder.embed.weight" in ours else "a file of timm's layout"
    return Weights(source, kind, ours, names, arguments, notes=notes + _stripped(tensors))


def _tensors(source: str, content: Any) -> dict[str, Tensor]:
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise InputError(f"{source} holds no weights: expected tensors by name, or under 'state_dict' or 'model'")
    return tensors


def _stripped(keys: Mapping[str, Any]) -> tuple[str, ...]:
    found = [prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in keys)]
    return (f"stripped from the names: {', '.join(found)}",) if found else ()


def sizes(
    source: str, ours: Mapping[str, Tensor], image_size: int | tuple[int, int] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of `build_mae` that tensors tell, and notes on those that they do not.

    Heads leave no trace in a tensor: those of the named shape of the same depth and width are taken, else heads of 64;
    in a decoder heads of 32, the 16 of a 512-wide one.
    """
    if "encoder.patch_embed.proj.weight" not in ours or "encoder.pos_embed" not in ours:
        raise InputError(f"{source} holds no vision transformer: patch_embed.proj.weight or pos_embed is missing")
    width, in_chans, patch_size, _ = ours["encoder.patch_embed.proj.weight"].shape
    count = ours["encoder.pos_embed"].shape[1] - ("encoder.cls_token" in ours)
    shape = _stack(source, ours, "encoder", width)
    arguments = {"shape": shape, "patch_size": patch_size, "in_chans": in_chans}
    arguments["image_size"] = image_side(source, count, patch_size, image_size)
    notes = [f"the file has no head count: {shape.heads} heads of {shape.head_dim} taken"]
    if "decoder.embed.weight" in ours:
        arguments["decoder_shape"] = decoder = _stack(source, ours, "decoder", ours["decoder.embed.weight"].shape[0])
        notes.append(f"{decoder.heads} heads of {decoder.head_dim} taken for the decoder")
    return arguments, tuple(notes)


def _stack(source: str, ours: Mapping[str, Tensor], part: str, width: int) -> Shape:
    found = [re.match(rf"{part}\.blocks\.(\d+)\.", key) for key in ours]
    depth = 1 + max((int(match[1]) for match in found if match), default=-1)
    hidden = ours.get(f"{part}.blocks.0.mlp.fc1.weight")
    if not depth or hidden is None:
        raise InputError(f"{source} holds no vision transformer: {part}.blocks.0 is missing")
    mlp_ratio, head_dim = ratio(hidden.shape[0], width), 64 if part == "encoder" else 32
    if part == "encoder":
        for named in SHAPES.values():
            if (named.depth, named.width, named.mlp_ratio) == (depth, width, mlp_ratio):
                return named
    if width % head_dim:
        raise InputError(f"{source} does not say how many heads its {part} has, and {head_dim} does not divide {width}")
    return Shape(depth, width, width // head_dim, mlp_ratio)


def ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` that gives exactly `hidden` units at a width, in spite of rounding."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)


def image_side(
    source: str, count: int, patch_size: int, image_size: int | tuple[int, int] | None = None
) -> int | tuple[int, int]:
    """The image size of a number of patches: a square, or `image_size` where that gives as many."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size or (0, 0)
    if (height // patch_size) * (width // patch_size) == count:
        return height, width
    side = math.isqrt(max(count, 0))
    if not count or side**2 != count:
        raise InputError(f"{source} has positions for {count} patches, which are no square: give the image_size it had")
    return side * patch_size


def _timm(source: str, name: str, path: str) -> Weights:
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        raise unknown("timm model", name, near) if near else InputError(f"timm has no model like {name!r}")
    if path:
        content = read_file(path)
        tensors = _tensors(source, content.get("state_dict", content.get("model", content)))
    else:
        tensors = _pretrained(name)
    ours, names = from_timm(tensors)
    return Weights(source, f"timm's {name}", ours, names, timm_name=name, notes=_stripped(tensors))


def _pretrained(name: str) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # no such tag, no network, no weights: each library below raises its own
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"no weights for timm:{name} ({reason}): give a file, timm:{name}@FILE") from error
    return weights


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*config.json", "model.safetensors"]))
        if not (folder / "model.safetensors").exists():
            snapshot_download(name, allow_patterns=["pytorch_model.bin"])
    except HFValidationError as error:
        raise InputError(f"hf:{name} is neither a folder here nor a name on the hub (owner/name)") from error
    except Exception as error:  # offline, absent, gated: each library below raises its own
        reason = f"the hub has no such model or cannot be reached ({type(error).__name__})"
        raise InputError(f"hf:{name} is no folder here, and {reason}") from error
    return folder


def _huggingface(source: str, folder: Path, tensors: dict[str, Tensor] | None = None) -> Weights:
    config = _config(folder)
    if tensors is None:
        files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            raise InputError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
        content = read_file(path)
        tensors = _tensors(source, content.get("model", content))
    ours, names = from_huggingface(tensors)
    kind = "a Hugging Face ViTMAE" if config["model_type"] == "vit_mae" else "a Hugging Face ViT"
    arguments, options = _arguments(config), {"qkv_bias": config.get("qkv_bias", True)}
    eps, extra = config.get("layer_norm_eps", 1e-12), _pixels(folder)
    return Weights(source, kind, ours, names, arguments, options, extra, eps=eps)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): copy or download it again") from error
    return content if isinstance(content, dict) else {}


def _pixels(folder: Path) -> dict[str, Any]:
    """The mean and deviation of pixels, where the folder says them."""
    path = folder / "preprocessor_config.json"
    told = _json(path) if path.is_file() else {}
    return {key: told[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in told}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is no Hugging Face model: it holds no config.json")
    config = _json(path)
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        raise unknown(f"model_type in {path}", str(kind), ("vit", "vit_mae"))
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(f"{path}: hidden_act {config['hidden_act']!r} is not supported, only 'gelu'")
    return config


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `build_mae` in the config of a Hugging Face ViT or ViTMAE, with transformers' own defaults."""

    def shape(prefix: str, depth: int, width: int, heads: int, hidden: int) -> Shape:
        width = config.get(f"{prefix}hidden_size", width)
        return Shape(
            config.get(f"{prefix}num_hidden_layers", depth),
            width,
            config.get(f"{prefix}num_attention_heads", heads),
            ratio(config.get(f"{prefix}intermediate_size", hidden), width),
        )

    size, patch_size = config.get("image_size", 224), config.get("patch_size", 16)
    return {
        "shape": shape("", 12, 768, 12, 3072),
        "image_size": size if isinstance(size, int) else tuple(size),
        "patch_size": patch_size if isinstance(patch_size, int) else patch_size[0],
        "in_chans": config.get("num_channels", 3),
        "mask_ratio": config.get("mask_ratio", 0.75),
        "norm_pix": config.get("norm_pix_loss", False),
        "decoder_shape": shape("decoder_", 8, 512, 16, 2048),
    }
