"""Weights of every kind of source, under Bamboo's names and with what the source says of the model."""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from bamboo.checkpoints.key_maps import PREFIXES, Tensors, bamboo_name, from_config, from_huggingface
from bamboo.checkpoints.sources import RANDOM, Source, find_source, read_config, read_weights
from bamboo.errors import InputError, unknown
from bamboo.files import read_file
from bamboo.shapes import SHAPES, Patches, Shape
from bamboo.vision.encoder import in_todays_words
from bamboo.vision.heads import Pool
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale

ImageSize = int | tuple[int, int]
DEFAULTS = {name: option.default for name, option in inspect.signature(build_mae).parameters.items()}
KNOWN = {**DEFAULTS, "mean": None, "std": None, "layer_norm_eps": None, "learned_positions": None, "qkv_bias": True}
KNOWN |= {"kv_compression": None}
"""What is kept of a model's description, and what holds where the source says nothing."""


@dataclass(frozen=True)
class Head:
    """Of a classifier: how tokens are pooled, and the names of its classes in the order of the logits."""

    pool: Pool
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what is known of the model that they belong to.

    Args:
        kind: what the source turned out to be, for people.
        tensors: under Bamboo's names.
        names: Bamboo's name of every key of the file.
        arguments: what the source says of the model, by the keys of `KNOWN`.
        architecture: timm's name and arguments of an encoder that `arguments` do not describe.
        head: of a classifier.
        notes: what was taken for granted.
    """

    source: str
    kind: str
    tensors: Tensors
    names: dict[str, str]
    arguments: dict[str, Any]
    architecture: tuple[str, dict[str, Any]] | None = None
    head: Head | None = None
    notes: tuple[str, ...] = ()

    @property
    def patches(self) -> Patches:
        """Size, patch size and channels of the images of a plain ViT."""
        return Patches.of(self.arguments["image_size"], self.arguments["patch_size"], self.arguments["in_chans"])

    @property
    def scale(self) -> PixelScale:
        """How the images of the model are standardised: by what the source says, else by `PixelScale`'s defaults."""
        projection = self.tensors.get("encoder.patch_embed.proj.weight")
        in_chans = self.arguments["in_chans"] if projection is None else projection.shape[1]
        mean, std = self.arguments["mean"], self.arguments["std"]
        return PixelScale(in_chans, mean, std) if mean and std and len(mean) == in_chans else PixelScale(in_chans)


def read_source(source: str | Path | Checkpoint, image_size: ImageSize | None = None) -> Checkpoint:
    """Read an image model, if that is not done yet; `image_size` helps where a file has a grid that is not square.

    Raises:
        InputError: one line that names the source and says what is wrong with it.
    """
    if isinstance(source, Checkpoint):
        return source
    opened = find_source(source)
    if opened.random and opened.content:
        raise InputError(f"{source}: random weights are drawn for timm:NAME{RANDOM}, and for folders by profile alone")
    if opened.kind == "weights":
        return _read_file(opened.text, opened.content, image_size)
    if opened.kind == "timm":
        return _read_timm(opened)
    if opened.kind == "vit":
        return _read_vit(opened)
    if opened.kind == "text":
        raise InputError(f"{source} is a masked language model: expected a model of images")
    model_type = str(opened.content.get("model_type"))
    raise unknown(f"model_type in {opened.path}/config.json", model_type, ("vit", "vit_mae"))


def _tensors(source: str, content: Mapping[str, Any]) -> Tensors:
    named = content.get("state_dict", content.get("model", content))
    tensors = {k: v for k, v in named.items() if isinstance(v, Tensor)} if isinstance(named, Mapping) else {}
    if not tensors:
        raise InputError(f"{source} holds no weights: expected tensors by name, or under 'state_dict' or 'model'")
    return tensors


def _named(source: str, content: Mapping[str, Any]) -> tuple[Tensors, dict[str, str], tuple[str, ...]]:
    """Tensors under Bamboo's names, the new name of each key, and a note on prefixes."""
    tensors = _tensors(source, content)
    names = {key: bamboo_name(key) for key in tensors}
    stripped = ", ".join(prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in tensors))
    notes = (f"stripped from the names: {stripped}",) if stripped else ()
    return {names[key]: tensor for key, tensor in tensors.items()}, names, notes


def _read_file(source: str, content: Mapping[str, Any], image_size: ImageSize | None = None) -> Checkpoint:
    tensors, names, notes = _named(source, content)
    hyperparameters = content.get("hyper_parameters")
    if isinstance(hyperparameters, Mapping):
        hyperparameters = in_todays_words(hyperparameters)
        arguments = {key: hyperparameters.get(key, default) for key, default in KNOWN.items()}
        arguments |= PixelScale(*(arguments[key] for key in ("in_chans", "mean", "std"))).statistics()
        kind = "a Bamboo checkpoint" if "state_dict" in content else "weights that Bamboo exported"
        head = None
        if "num_classes" in hyperparameters:
            head = Head(hyperparameters["pool"], tuple(content.get("classes") or hyperparameters["classes"]))
        return Checkpoint(source, kind, tensors, names, arguments, head=head)
    arguments, more = infer_arguments(source, tensors, image_size)
    kind = "a reference MAE file" if "decoder.embed.weight" in tensors else "a file of timm's layout"
    return Checkpoint(source, kind, tensors, names, arguments, notes=(*more, *notes))


def infer_arguments(
    source: str, tensors: Tensors, image_size: ImageSize | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `build_mae` that shapes of tensors tell, and notes on those that they do not.

    Heads leave no trace in a tensor: those of the named shape of the same depth and width are taken, else heads of 64;
    in a decoder heads of 32, the 16 of a 512-wide one.
    """
    if "encoder.patch_embed.proj.weight" not in tensors or "encoder.pos_embed" not in tensors:
        raise InputError(f"{source} holds no vision transformer: patch_embed.proj.weight or pos_embed is missing")
    _, in_chans, patch_size, _ = tensors["encoder.patch_embed.proj.weight"].shape
    count = tensors["encoder.pos_embed"].shape[1] - ("encoder.cls_token" in tensors)
    shape = _infer_shape(source, tensors, "encoder", head_dim=64)
    arguments = {**KNOWN, "shape": shape, "patch_size": patch_size, "in_chans": in_chans}
    arguments["image_size"] = image_size_of(source, count, patch_size, image_size)
    notes = [f"the file has no head count: {shape.heads} heads of {shape.head_dim} taken"]
    if "decoder.embed.weight" in tensors:
        decoder = _infer_shape(source, tensors, "decoder", head_dim=32)
        arguments["decoder_shape"] = decoder
        notes.append(f"{decoder.heads} heads of {decoder.head_dim} taken for the decoder")
    return arguments, notes


def _infer_shape(source: str, tensors: Tensors, part: str, head_dim: int) -> Shape:
    matches = [re.match(rf"{part}\.blocks\.(\d+)\.", key) for key in tensors]
    first = tensors.get(f"{part}.blocks.0.mlp.fc1.weight")
    if first is None:
        raise InputError(f"{source} holds no vision transformer: {part}.blocks.0 is missing")
    depth, (mlp_width, width) = 1 + max(int(match[1]) for match in matches if match), first.shape
    for named in SHAPES.values():
        if part == "encoder" and (named.depth, named.width, named.mlp_width) == (depth, width, mlp_width):
            return named
    if width % head_dim:
        raise InputError(f"{source} does not say how many heads its {part} has, and {head_dim} does not divide {width}")
    return Shape.of(depth, width, width // head_dim, mlp_width)


def image_size_of(source: str, count: int, patch_size: int, image_size: ImageSize | None = None) -> ImageSize:
    """The image size of a number of patches: a square, or `image_size` where that gives as many."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size or (0, 0)
    if (height // patch_size) * (width // patch_size) == count:
        return height, width
    side = math.isqrt(max(count, 0))
    if not count or side**2 != count:
        raise InputError(f"{source} has positions for {count} patches, which are no square: give the image_size it had")
    return side * patch_size


def _read_timm(source: Source) -> Checkpoint:
    """A model of timm: its name, perhaps with a file, or a folder in the layout of its hub."""
    name, options = source.name, dict[str, Any]()
    if source.content:  # config.json
        content = read_weights(source)
        if "hyper_parameters" in content:
            return _read_file(source.text, content)
        name, options = source.content["architecture"], source.content.get("model_args") or {}
        pixels = source.content.get("pretrained_cfg", {})
    else:
        content = read_file(source.path) if source.path else _create(source)
        pixels = content.get("hyper_parameters") or timm.get_pretrained_cfg(name).to_dict()
    tensors, names, notes = _named(source.text, content)
    arguments = {**KNOWN, "mean": pixels.get("mean"), "std": pixels.get("std")}
    return Checkpoint(source.text, f"timm's {name}", tensors, names, arguments, (name, options), notes=notes)


def _create(source: Source) -> dict[str, Any]:
    try:
        weights: dict[str, Any] = timm.create_model(source.name, pretrained=not source.random).state_dict()
    except Exception as error:  # no such tag, no network, no weights: each library below raises its own
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"no weights for {source.text} ({reason}): give a file, {source.text}@FILE") from error
    return weights


def _read_vit(source: Source) -> Checkpoint:
    config = source.content
    if config.get("hidden_act", "gelu") != "gelu":
        where = f"{source.path}/config.json"
        raise InputError(f"{where}: hidden_act {config['hidden_act']!r} is not supported, only 'gelu'")
    tensors, names = from_huggingface(_tensors(source.text, read_weights(source)))
    kind = {"vit": "a Hugging Face ViT", "vit_mae": "a Hugging Face ViTMAE"}.get(config["model_type"], "a BEiT")
    arguments, head = {**KNOWN, **from_config(config), **pixel_statistics(source.path)}, None
    if any(name.endswith("ForImageClassification") for name in config.get("architectures") or []):
        labels = config.get("id2label") or {"0": "0", "1": "1"}  # transformers' default is two labels
        pool: Pool = "avg" if config["model_type"] == "beit" else "token"
        head = Head(pool, tuple(labels[key] for key in sorted(labels, key=int)))
    return Checkpoint(source.text, kind, tensors, names, arguments, head=head)


def pixel_statistics(folder: Path | None) -> dict[str, Any]:
    """The mean and standard deviation of pixels, where a Hugging Face folder says them."""
    path = folder and folder / "preprocessor_config.json"
    processor = read_config(path) if path and path.is_file() else {}
    return {key: processor[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in processor}
