"""The models that a person can name on the command line, opened."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bamboo import vision as vision  # importing it registers the named shapes with timm
from bamboo.errors import InputError, unknown
from bamboo.files import is_text_checkpoint, read_file
from bamboo.vision.encoder import fix_positions, init_weights

from .architectures import find_stack
from .feeding import reads_text

RANDOM = "@random"


@dataclass(frozen=True)
class Opened:
    """A model that was named.

    Args:
        label: what to call it.
        source: what was asked for, without the label.
        model: in evaluation mode.
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


def open_model(text: str, image_size: int | None = None, seed: int = 0) -> Opened:
    """The model that `[label=]MODEL` names.

    MODEL is a checkpoint of this project or of the reference MAE release; `timm:NAME`, `timm:NAME@FILE`; `hf:FOLDER` or
    `hf:NAME`; and `timm:NAME@random` or `hf:FOLDER@random` for the architecture with freshly drawn weights.

    Args:
        text: what a person typed.
        image_size: side of the images, where it is not to be the model's own.
        seed: of random weights.

    Raises:
        InputError: for a name that leads to no model, with near ones where there are any.
    """
    label, source = split_label(text)
    random = source.endswith(RANDOM)
    name = source.removesuffix(RANDOM)
    tokenizer = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith("hf:") or (Path(name) / "config.json").is_file():
            model, notes = _open_huggingface(name.removeprefix("hf:"), random, image_size)
            tokenizer = open_tokenizer(name.removeprefix("hf:")) if reads_text(model) else None
        elif random:
            model, notes = _create_timm(name, image_size), ()
        elif name.startswith("timm:") and not _is_plain(name):
            model, notes = _load_timm(name, image_size), ()
        elif Path(name).is_file() and is_text_checkpoint(read_file(name)):
            from bamboo.text.checkpoints import load_text

            whole, tokenizer, notes = load_text(name)
            model = whole.base_model
        else:
            model, notes = _load(name, image_size)
    size, in_chans = _images_of(model)
    return Opened(label or name_of(source), source, model.eval(), size, in_chans, notes, tokenizer=tokenizer)


def split_label(text: str) -> tuple[str, str]:
    """The label and the source of `label=source`; a path that exists as it stands has no label, whatever is in it."""
    label, found, source = text.partition("=")
    return (label, source) if found and not Path(text).exists() and "/" not in label else ("", text)


def name_of(source: str) -> str:
    """A short label for a source: the last part of its name, or of its path with the folder that says whose it is."""
    kind, found, rest = source.partition(":")
    if found and kind in ("timm", "hf") and not Path(rest.removesuffix(RANDOM)).exists():
        return rest
    path = Path(rest if found else source)
    return f"{path.parent.name}/{path.stem}" if path.stem in ("last", "model", "best", "checkpoint") else path.stem


def fresh_copy(opened: Opened, seed: int = 0) -> Opened:
    """The same architecture with weights drawn anew, in the way of the library that it comes from.

    An encoder of this project or of an MAE checkpoint is initialised as in He et al. 2022, one of timm as timm does.

    Raises:
        InputError: where there is no known way to initialise it.
    """
    model = opened.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config"):
            build: Any = type(model)
            new = build(model.config)
        elif isinstance(model, VisionTransformer):
            new = copy.deepcopy(model)
            _redraw(new, of_timm=opened.source.startswith("timm:"))
        elif opened.source.startswith("timm:"):
            new = _create_timm(opened.source.partition("@")[0], opened.size)
        else:
            raise InputError(f"{opened.label}: no known way to initialise a {type(model).__name__} anew")
    if hasattr(model, "pretrained_cfg"):
        new.pretrained_cfg = model.pretrained_cfg
    return replace(opened, label=f"{opened.label} (fresh)", model=new.eval(), notes=(), baseline=True)


@torch.no_grad()
def _redraw(model: VisionTransformer, of_timm: bool) -> None:
    table = None if model.pos_embed is None or model.pos_embed.requires_grad else model.pos_embed.clone()
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    model.init_weights("")  # positions, class token and registers too
    if not of_timm:
        model.apply(init_weights)
        if model.cls_token is not None:
            nn.init.normal_(model.cls_token, std=0.02)
        if table is not None and model.num_prefix_tokens == 1:
            fix_positions(model.pos_embed, model.patch_embed.grid_size)
            return
    if table is not None:
        model.pos_embed.copy_(table)


def _load(name: str, image_size: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    from bamboo.checkpoints import load_encoder

    encoder, report = load_encoder(name, image_size)
    if Path(name).is_file():
        # A checkpoint of this project says how its pixels were standardised.
        told = read_file(name).get("hyper_parameters") or {}
        if told.get("mean") and told.get("std"):
            encoder.pretrained_cfg = {"mean": told["mean"], "std": told["std"]}
    return encoder, report.notes


def _create_timm(name: str, image_size: int | tuple[int, int] | None, **weights: Any) -> nn.Module:
    kind, _, name = name.partition(":")
    if kind != "timm":
        raise InputError(f"random weights need timm:NAME{RANDOM} or hf:FOLDER{RANDOM}")
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    size = {"img_size": image_size} if image_size else {}
    try:
        return timm.create_model(name, **size, **weights)  # type: ignore[no-any-return]
    except TypeError as error:
        raise InputError(f"timm:{name} cannot be built for images of {image_size} pixels: {error}") from error


def _is_plain(name: str) -> bool:
    """Whether a model of timm is a plain ViT, as `load_encoder` reads. Raises `InputError` for one without blocks."""
    with torch.device("meta"):
        model = _create_timm(name.partition("@")[0], None)
    find_stack(model)
    return isinstance(model, VisionTransformer)


def _load_timm(name: str, image_size: int | None) -> nn.Module:
    name, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise InputError(f"{file} is missing: give the path of the weights of {name}")
    weights = {"checkpoint_path": file} if file else {"pretrained": True}
    try:
        return _create_timm(name, image_size, **weights)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name} cannot be loaded ({reason}): give a file of its weights, {name}@FILE") from error


def _open_huggingface(name: str, random: bool, image_size: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise InputError("hf: models need transformers: pip install 'bamboo-mae[text]'") from error
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type in ("vit", "vit_mae") and not random:
            return _load(name if Path(name).is_dir() else f"hf:{name}", image_size)
        model = AutoModel.from_config(config) if random else AutoModel.from_pretrained(name, trust_remote_code=False)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        hint = f"; for random weights say hf:{name}{RANDOM}" if (Path(name) / "config.json").is_file() else ""
        raise InputError(f"hf:{name} cannot be loaded: {reason}{hint}") from error
    if image_size and not reads_text(model) and image_size != model.config.image_size:
        raise InputError(f"hf:{name} reads images of {model.config.image_size} pixels alone: leave image_size out")
    return model, _pixel_statistics(model, Path(name))


def open_tokenizer(name: str) -> Any:
    """The tokenizer of a Hugging Face model. Raises `InputError` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{name} has no tokenizer that can be loaded: {reason}") from error


def _pixel_statistics(model: nn.Module, folder: Path) -> tuple[str, ...]:
    if reads_text(model):
        return ()
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return ("no preprocessor_config.json: pixels are standardised with the mean and deviation of ImageNet",)
    import json

    told = json.loads(path.read_text(encoding="utf-8"))
    model.pretrained_cfg = {"mean": told.get("image_mean", ()), "std": told.get("image_std", ())}  # type: ignore[assignment]
    return ()


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
