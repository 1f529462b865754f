"""What an exported folder says of its model: its library and task, sizes and costs, and what it reads."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

from safetensors import safe_open

from bamboo.checkpoints.exporting import loading_calls
from bamboo.checkpoints.sources import read_config
from bamboo.files import read_json
from bamboo.shapes import Patches, Shape, decoder_flops, encoder_flops

BLOCK = re.compile(r"(^|\.)(blocks|layers?)\.\d+\.")
"""In the names of weights of the blocks of an encoder, in timm and in transformers."""
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
VIT = ("vision-transformer",)
POOLS = {"avg": "the mean of the patches", "token": "the class token", "map": "the patches, by attention"}


class Described(NamedTuple):
    """A model, as a card describes it.

    Args:
        task: the hub's name of what it does.
        what: it is, for people.
        tags: for searching.
        sizes: shape, parameters and FLOPs, as text by name.
        inputs: what it reads, as text by name.
        classes: names of the classes of a classifier.
    """

    task: str
    what: str
    tags: tuple[str, ...]
    sizes: dict[str, str]
    inputs: dict[str, str]
    classes: tuple[str, ...] = ()


class Exported(NamedTuple):
    """A folder: its name, the library that it was written for, the calls that load it, and the model in it."""

    name: str
    library: str
    calls: tuple[str, ...]
    model: Described


def read_exported(folder: str | Path) -> Exported:
    """The description of a folder that `export` or `export_text` wrote."""
    place = Path(folder)
    config, name = read_config(place / "config.json"), place.resolve().name
    calls = tuple(loading_calls(place, name))
    if "architecture" in config:
        return Exported(name, "timm", calls, _timm(config, _parameters(place)))
    if config["model_type"] in ("vit", "vit_mae"):
        processor = read_config(place / "preprocessor_config.json")
        return Exported(name, "transformers", calls, _vit(config, _parameters(place), processor))
    return Exported(name, "transformers", calls, _text(config, _parameters(place), place))


def _parameters(folder: Path) -> dict[str, str]:
    """Parameters of the blocks of the encoder and of all, as the header of the file counts them."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        counts = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    blocks = sum(count for key, count in counts.items() if BLOCK.search(key))
    return {"parameters of the blocks": f"{blocks:,}", "parameters in the file": f"{sum(counts.values()):,}"}


def _shape(shape: Shape) -> dict[str, str]:
    heads = f"{shape.heads}, each {shape.head_dim} wide"
    return {"depth x width": str(shape), "heads": heads, "hidden units of an MLP": str(shape.mlp_width)}


def _images(shape: Shape, patches: Patches, parameters: dict[str, str]) -> dict[str, str]:
    flops = f"{encoder_flops(shape, patches) / 1e9:.4g} GFLOPs (a multiply-accumulate counts as two)"
    cut = f"{patches.patch_size} px, {patches.grid[0]} x {patches.grid[1]} of them in an image"
    return {**_shape(shape), "patches": cut, **parameters, "encoder, one image forward": flops}


def _pixels(patches: Patches, mean: list[float], std: list[float], resizing: str) -> dict[str, str]:
    height, width = patches.image_size
    return {
        "images": f"{height} x {width} px, {patches.in_chans} channel{'s' * (patches.in_chans > 1)}",
        "resizing": resizing,
        "pixels": "from 0 to 1, less the mean, over the standard deviation",
        "mean": ", ".join(f"{value:.4g}" for value in mean),
        "standard deviation": ", ".join(f"{value:.4g}" for value in std),
    }


def _timm(config: dict[str, Any], parameters: dict[str, str]) -> Described:
    sizes, pixels = config["model_args"], config["pretrained_cfg"]
    shape = Shape(sizes["depth"], sizes["embed_dim"], sizes["num_heads"], sizes["mlp_ratio"])
    patches = Patches.of(tuple(sizes["img_size"]), sizes["patch_size"], sizes["in_chans"])
    resizing = f"{pixels['interpolation']}, then the middle: {pixels['crop_pct']:.4g} of the shorter side"
    table, inputs = _images(shape, patches, parameters), _pixels(patches, pixels["mean"], pixels["std"], resizing)
    classes = tuple(config.get("label_names", ()))
    if not classes:
        return Described("image-feature-extraction", "The encoder of a vision transformer", VIT, table, inputs)
    table["head reads"] = POOLS[config["global_pool"]]
    return Described("image-classification", _classifier(classes), VIT, table, inputs, classes)


def _classifier(classes: tuple[str, ...]) -> str:
    return f"A vision transformer that tells {len(classes)} classes apart"


def _vit(config: dict[str, Any], parameters: dict[str, str], processor: dict[str, Any]) -> Described:
    patches = Patches.of(config["image_size"], config["patch_size"], config["num_channels"])
    shape, (mean, std) = Shape.of(*(config[key] for key in SIZES)), (processor[f"image_{k}"] for k in ("mean", "std"))
    table, inputs = _images(shape, patches, parameters), _pixels(patches, mean, std, "bicubic, to this size")
    if config["model_type"] == "vit":
        classes = tuple(config["id2label"][key] for key in sorted(config["id2label"], key=int))
        return Described("image-classification", _classifier(classes), VIT, table, inputs, classes)
    decoder, visible = Shape.of(*(config[f"decoder_{key}"] for key in SIZES)), patches.visible(config["mask_ratio"])
    flops = encoder_flops(shape, patches, visible)
    flops += decoder_flops(decoder, shape, patches, visible, patches.count - visible)
    table["decoder"] = f"{decoder}, {decoder.heads} heads"
    table["both, one masked image forward"] = f"{flops / 1e9:.4g} GFLOPs"
    what = "A masked autoencoder: a vision transformer, and the decoder that it was trained with"
    return Described("image-feature-extraction", what, (*VIT, "masked-autoencoder"), table, inputs)


def _text(config: dict[str, Any], parameters: dict[str, str], folder: Path) -> Described:
    kind, model = config["architectures"][0], read_json(folder / "tokenizer.json")["model"]
    limit = int(read_config(folder / "tokenizer_config.json").get("model_max_length") or 0)
    length = limit if limit < 1e9 else 0  # transformers writes a huge number where there is no limit
    inputs = {"tokenizer": f"{model['type']}, {len(model['vocab']):,} tokens"}
    inputs["longest text"] = f"{length} tokens, those at its ends among them" if length else ""
    table, family = {**_text_shape(config, length), **parameters}, config["model_type"]
    if kind.endswith("ForMaskedLM"):
        tags = ("masked-language-modeling",)
        return Described("fill-mask", f"A masked language model ({family})", tags, table, inputs)
    if kind.endswith("ForSequenceClassification"):
        labels = config.get("id2label") or {}
        classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
        return Described("text-classification", f"A classifier of texts ({family})", (), table, inputs, classes)
    return Described("feature-extraction", f"An encoder of texts ({family}), without a head", (), table, inputs)


def _text_shape(config: dict[str, Any], length: int) -> dict[str, str]:
    """Of the families that Bamboo builds, of which `Shape` counts the costs; of others nothing is claimed."""
    from bamboo.text.encoder import Architecture, shape_of  # seconds, for transformers, which is an extra

    if config["model_type"] not in get_args(Architecture):
        return {}
    shape = shape_of(SimpleNamespace(**config))
    flops = f"{shape.flops(length) / 1e9:.4g} GFLOPs, if all tokens attend to all"
    return _shape(shape) | ({f"blocks, {length} tokens forward": flops} if length else {})
