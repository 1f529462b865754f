"""The models that a person can name on the command line, opened."""

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bamboo.checkpoints import find_source, load_encoder
from bamboo.checkpoints.reading import pixel_statistics
from bamboo.checkpoints.sources import RANDOM, Source
from bamboo.errors import InputError, loading
from bamboo.vision.encoder import init_encoder

from .architectures import find_stack
from .inputs import reads_text


@dataclass(frozen=True)
class Opened:
    """A model that was named, in evaluation mode.

    Args:
        label: what to call it.
        source: what was asked for, without the label.
        model: the model.
        size: height and width of its images in pixels; None for a text model.
        in_chans: channels of its images.
        notes: what was taken for granted in loading it.
        baseline: whether it is there only to be compared with the model before it.
        tokenizer: transformers' tokenizer of a text model.
    """

    label: str
    source: str
    model: nn.Module
    size: tuple[int, int] | None
    in_chans: int = 3
    notes: tuple[str, ...] = ()
    baseline: bool = False
    tokenizer: Any = None


def open_model(text: str, image_size: int | None = None, seed: int = 0, blocks: str | None = None) -> Opened:
    """The model that `[label=]SOURCE` names, where SOURCE is any of which `bamboo.checkpoints.sources` knows.

    `image_size` is the side of its images, where it is not to be the model's own, and `seed` that of random weights.

    Raises:
        InputError: for a name that leads to no model, with near ones where there are any.
    """
    label, name = split_label(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer, notes = _load(name, image_size, blocks)
    size, in_chans = _images_of(model)
    return Opened(label or name_of(name), name, model.eval(), size, in_chans, notes, tokenizer=tokenizer)


Loaded = tuple[nn.Module, Any, tuple[str, ...]]
"""A model, the tokenizer of one that reads texts, and what was taken for granted."""


def _load(name: str, image_size: int | None, blocks: str | None) -> Loaded:
    source = find_source(name)
    if source.kind == "text":
        from bamboo.text.checkpoints import load_text

        model, tokenizer, notes = load_text(name)
        return model.base_model, tokenizer, notes
    if source.kind == "transformers" or (source.kind == "vit" and source.random):
        return _open_transformers(source, image_size)
    if source.kind == "timm" and not source.content and not _is_read(source, blocks):
        return _open_timm(source, image_size), None, ()
    encoder, report = load_encoder(name, image_size)
    return encoder, None, report.notes


def split_label(text: str) -> tuple[str, str]:
    """The label and the source of `label=source`; a path that exists as it stands has no label, whatever is in it."""
    label, equals, source = text.partition("=")
    return (label, source) if equals and not Path(text).exists() and "/" not in label else ("", text)


def name_of(source: str) -> str:
    """A short label for a source: the last part of its name, or of its path with the folder that says whose it is."""
    scheme, colon, rest = source.partition(":")
    if colon and scheme in ("timm", "hf") and not Path(rest.removesuffix(RANDOM)).exists():
        return rest
    path = Path(rest if colon else source)
    folders = [name for name in path.parent.parts if not re.fullmatch(r"checkpoints|version_\d+", name)]
    return (
        f"{folders[-1]}/{path.stem}" if folders and path.stem in ("last", "model", "best", "checkpoint") else path.stem
    )


def fresh_copy(opened: Opened, seed: int = 0) -> Opened:
    """The same architecture with weights drawn anew, in the way of the library that it comes from.

    An encoder of this project is initialised by its own rule, one of another MAE checkpoint as in He et al. 2022, and
    one of timm as timm does.

    Raises:
        InputError: where there is no known way to initialise it.
    """
    model = opened.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config"):
            from bamboo.text.attention import attach_positions

            build: Any = type(model)
            new = attach_positions(build(model.config))
        elif isinstance(model, VisionTransformer):
            new = copy.deepcopy(model)
            _redraw(new, of_timm=opened.source.startswith("timm:"))
        elif opened.source.startswith("timm:"):
            new = _create_timm(find_source(opened.source).name, opened.size)
        else:
            raise InputError(f"{opened.label}: no known way to initialise a {type(model).__name__} anew")
    if hasattr(model, "pretrained_cfg"):
        new.pretrained_cfg = model.pretrained_cfg
    return replace(opened, label=f"{opened.label} (fresh)", model=new.eval(), notes=(), baseline=True)


@torch.no_grad()
def _redraw(model: VisionTransformer, of_timm: bool) -> None:
    fixed = None if model.pos_embed is None or model.pos_embed.requires_grad else model.pos_embed.clone()
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    model.init_weights("")  # positions, class token and registers too
    if not of_timm:
        init_encoder(model, getattr(model, "init", "mae"))
    if fixed is not None:
        model.pos_embed.copy_(fixed)


def _is_read(source: Source, blocks: str | None) -> bool:
    """Whether `load_encoder` reads a model of timm: a plain ViT. Raises `InputError` for one without blocks."""
    with torch.device("meta"):
        model = _create_timm(source.name, None)
    find_stack(model, blocks)
    return isinstance(model, VisionTransformer) and not source.random


def _create_timm(name: str, image_size: int | tuple[int, int] | None, **weights: Any) -> nn.Module:
    size = {"img_size": image_size} if image_size else {}
    try:
        return timm.create_model(name, **size, **weights)  # type: ignore[no-any-return]
    except TypeError as error:
        raise InputError(f"timm:{name} cannot be built for images of {image_size} pixels: {error}") from error


def _open_timm(source: Source, image_size: int | None) -> nn.Module:
    if source.path and not source.path.is_file():
        raise InputError(f"{source.path} is missing: give the path of the weights of {source.name}")
    weights = {"checkpoint_path": str(source.path)} if source.path else {"pretrained": not source.random}
    with loading(f"timm:{source.name}", f": give a file of its weights, timm:{source.name}@FILE"):
        return _create_timm(source.name, image_size, **weights)


def _open_transformers(source: Source, image_size: int | None) -> Loaded:
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError as error:
        raise InputError("hf: models need transformers: pip install 'bamboo-mae[text]'") from error
    name = source.name
    with loading(f"hf:{name}", "" if source.random else f"; for random weights say hf:{name}{RANDOM}"):
        if source.random:
            model = AutoModel.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
        else:
            model = AutoModel.from_pretrained(name, trust_remote_code=False)
    model = model.float()  # of weights that are kept in half precision too
    if reads_text(model):
        with loading(f"the tokenizer of {name}"):
            return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False), ()
    if image_size and image_size != model.config.image_size:
        raise InputError(f"hf:{name} reads images of {model.config.image_size} pixels alone: leave image_size out")
    model.pretrained_cfg = pixel_statistics(source.path)
    note = "no preprocessor_config.json: pixels are standardised with ImageNet's mean and deviation"
    return model, None, () if model.pretrained_cfg else (note,)


def _images_of(model: nn.Module) -> tuple[tuple[int, int] | None, int]:
    """Height and width and channels of the images that a model reads; None for a text model."""
    if reads_text(model):
        return None, 0
    config: Any = getattr(model, "config", None)
    if config is not None:
        size = config.image_size
        return ((size, size) if isinstance(size, int) else tuple(size)), config.num_channels
    embed: Any = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    return tuple(size), getattr(getattr(embed, "proj", None), "in_channels", 3)
