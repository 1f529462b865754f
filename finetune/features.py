"""Features of a frozen encoder over a data set: taken in one pass, by all processes together, kept on disk if asked."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from bamboo import __version__
from bamboo.errors import InputError
from bamboo.files import read_file, write_weights
from bamboo.processes import from_first_process, is_first_process, of_all_processes
from bamboo.vision.encoder import encode, options_of, patches_of, shape_of
from bamboo.vision.images import Source
from bamboo.vision.pixels import PixelScale

Features = dict[str, Tensor]


def normed_features(encoder: VisionTransformer, scale: PixelScale) -> Callable[[Tensor], Features]:
    """What gives of bytes (B, C, H, W) the features (B, D) after the final norm, in fp32.

    `mean` is the mean of the patch tokens, `cls` the class token of an encoder that has one.
    """

    def compute(images: Tensor) -> Features:
        tokens = encode(encoder, scale(images)).float()
        features = {"mean": tokens[:, encoder.num_prefix_tokens :].mean(dim=1)}
        return {**features, "cls": tokens[:, 0]} if encoder.cls_token is not None else features

    return compute


@torch.no_grad()
def extract(
    compute: Callable[[Tensor], Features],
    loader: Iterable[Mapping[str, Any]],
    device: torch.device,
    progress: str | None = None,
) -> Features:
    """Features of all images of a loader, and their `label`, in the order of the data set, on the CPU.

    Where several processes take part each runs over its share, the loader's, and all get the features of all.

    Args:
        compute: features of images (B, C, H, W) on `device`, by name, each with B rows.
        loader: of batches as those of `ImageData`.
        device: where the encoder is.
        progress: what a progress bar says, for none None.

    Raises:
        InputError: where no image can be read.
    """
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for batch in tqdm(loader, progress, unit=" batches", leave=False, disable=progress is None):
        if len(batch["image"]):
            features = compute(batch["image"].to(device, non_blocking=True))
            for name, value in {**features, "label": batch["label"], "index": batch["index"]}.items():
                rows[name].append(value.cpu())
    parts = [part for part in of_all_processes({name: torch.cat(each) for name, each in rows.items()}) if part]
    if not parts:
        raise InputError("none of the images can be read")
    if len(parts) == 1:
        return {name: value for name, value in parts[0].items() if name != "index"}
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = whole.pop("index").argsort()
    return {name: value[order] for name, value in whole.items()}


def cached(folder: Path | None, key: str, compute: Callable[[], Features]) -> Features:
    """What `compute` gives, from `KEY.safetensors` in a folder if it is there, which else is written; None for neither.

    All processes must call this.
    """
    if folder is None:
        return compute()
    path = folder / f"{key}.safetensors"
    if from_first_process(path.is_file):
        features: Features = read_file(path)["model"]
        return features
    features = compute()
    if is_first_process():
        write_weights(path, features, {})
    return features


def fingerprint(encoder: VisionTransformer, scale: PixelScale, source: Source, *settings: object) -> str:
    """A word of 32 letters that is another one wherever the features of the images may be others.

    It follows from the weights and the architecture of the encoder, how images are standardised, which images these
    are (see `Source.stamp`), the version of this package, and further settings.
    """
    digest = hashlib.blake2b(digest_size=16)
    shape = repr((shape_of(encoder), patches_of(encoder), options_of(encoder), encoder))
    digest.update(json.dumps([__version__, scale.statistics(), shape, [str(setting) for setting in settings]]).encode())
    digest.update(source.stamp())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
