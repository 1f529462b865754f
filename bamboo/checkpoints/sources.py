"""What a SOURCE of a model may be: one front door for profile, knn, probe, fine-tuning, reconstruct and export.

    FILE                        `weights`: a checkpoint of Bamboo or weights that it exported, a file in the layout of
                                timm or of the reference MAE release; `text`: a checkpoint of a masked language model
    FOLDER, hf:FOLDER, hf:NAME  `vit`: a Hugging Face ViT or ViTMAE; `timm`: the layout of timm's hub; `transformers`:
                                any other model of transformers. NAME is one of Hugging Face's hub
    timm:NAME, timm:NAME@FILE   `timm`: a model of timm, with the weights of its hub or of a file

`@random` behind timm:NAME or hf:FOLDER asks for the architecture with freshly drawn weights.
"""

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm

from bamboo import vision as vision  # importing it registers the named shapes with timm
from bamboo.errors import InputError, unknown
from bamboo.files import is_text_checkpoint, read_file, read_json

RANDOM = "@random"
Kind = Literal["weights", "text", "vit", "timm", "transformers"]


@dataclass(frozen=True)
class Source:
    """What a person named with `text`: of which kind, and where.

    Args:
        name: timm's name, the name on Hugging Face's hub, or a path.
        path: the file, or the folder with the configuration, where there is one.
        random: whether freshly drawn weights are asked for.
        content: what the file holds, or the config.json of the folder.
    """

    text: str
    kind: Kind
    name: str
    path: Path | None = None
    random: bool = False
    content: dict[str, Any] = field(default_factory=dict)


def find_source(source: str | Path) -> Source:
    """What a source is, by what the file or folder holds. `InputError` names the source and says what is wrong."""
    text = str(source)
    name, random = text.removesuffix(RANDOM), text.endswith(RANDOM)
    scheme, colon, rest = name.partition(":")
    if Path(name).is_dir():
        return _folder(text, name, Path(name), random)
    if Path(name).exists() or not colon:
        if random:
            raise InputError(f"random weights need timm:NAME{RANDOM} or hf:FOLDER{RANDOM}, not {text}")
        return _file(text, Path(name))
    if scheme == "timm":
        rest, _, file = rest.partition("@")
        if not timm.is_model(rest):
            near = get_close_matches(rest, timm.list_models())
            raise unknown("timm model", rest, near) if near else InputError(f"timm has no model like {rest!r}")
        return Source(text, "timm", rest, Path(file) if file else None, random)
    if scheme == "hf":
        folder = Path(rest)
        return _folder(text, rest, folder if folder.is_dir() else download(rest, "*config.json"), random)
    raise unknown("kind of source", scheme, ("timm", "hf"))


def _file(text: str, path: Path) -> Source:
    content = read_file(path)
    if is_text_checkpoint(content):
        return Source(text, "text", str(path), path, content=content)
    if any("embeddings.patch_embeddings." in key for key in content.get("model", content)):  # Hugging Face's names
        source = _folder(text, str(path.parent), path.parent, random=False)
        return replace(source, name=str(path)) if source.kind == "vit" else source
    return Source(text, "weights", str(path), path, content=content)


def _folder(text: str, name: str, folder: Path, random: bool) -> Source:
    config = read_config(folder / "config.json")
    kind: Kind = "transformers"
    if "architecture" in config:
        kind = "timm"
    elif config.get("model_type") in ("vit", "vit_mae") or _is_plain_beit(config):
        kind = "vit"
    return Source(text, kind, name, folder, random, config)


def _is_plain_beit(config: dict[str, Any]) -> bool:
    """Whether a BEiT computes what a ViT with pooled patches does: Bamboo exported such classifiers as BEiT once."""
    absolute = config.get("use_absolute_position_embeddings") and not config.get("layer_scale_init_value")
    return config.get("model_type") == "beit" and bool(absolute)


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json or the like of a model says. Raises `InputError` where it is missing or no JSON."""
    if not path.is_file():
        raise InputError(f"{path.parent} is no Hugging Face model: it holds no {path.name}")
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def read_weights(source: Source) -> dict[str, Any]:
    """The weights of a folder, here or on the hub: of one file, or of the shards that an index file lists.

    Raises:
        InputError: where there are none, or they cannot be read.
    """
    place = Path(source.name)
    if place.is_file():
        return read_file(place)
    for name in ("model.safetensors", "pytorch_model.bin"):
        folder = place if place.is_dir() else download(source.name, "*.json", name)
        if (folder / name).is_file():
            return read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_config(index).get("weight_map", {}).values()))
            folder = place if place.is_dir() else download(source.name, *shards)
            return {key: value for shard in shards for key, value in read_file(folder / shard).items()}
    raise InputError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def download(name: str, *patterns: str) -> Path:
    """The folder of a model on Hugging Face's hub, with the files of these patterns; `InputError` if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise InputError(f"hf:{name} is neither a folder here nor a name on the hub (owner/name)") from error
    except Exception as error:  # offline, absent, gated: each library below raises its own
        reason = f"the hub has no such model or cannot be reached ({type(error).__name__})"
        raise InputError(f"hf:{name} is no folder here, and {reason}") from error
