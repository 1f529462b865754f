"""Features of a frozen encoder over a data set: taken in one pass, by all processes together, kept on disk if asked."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from bamboo import __version__
from bamboo.errors import Diverged, InputError
from bamboo.files import check_writable, read_file, write_weights
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
    file: Path | None = None,
) -> Features:
    """Features of all images of a loader that have a label, and their `label`, in order, on the CPU.

    Where several processes take part each runs over its share, the loader's, and all get the features of all; all must
    call this. Images that cannot be read are counted and named, once.

    Args:
        compute: features of images (B, C, H, W) on `device`, by name, each with B rows.
        loader: of batches as those of `ImageData`.
        device: where the encoder is.
        progress: what a progress bar says, for none None.
        file: what an earlier pass left is read from here, if it can be; else it is written, if no image is missing.

    Raises:
        InputError: where there is no image left, or the folder of the file cannot be written.
        Diverged: where features are not finite.
    """
    if file and (kept := from_first_process(lambda: _read_whole(file))) is not None:
        return kept
    rows: dict[str, list[Tensor]] = defaultdict(list)
    skipped: list[str] = []
    for batch in tqdm(loader, progress, unit=" batches", leave=False, disable=progress is None):
        skipped += batch.get("skipped", ())
        if len(batch["image"]):
            features = compute(batch["image"].to(device, non_blocking=True))
            for name, value in {**features, "label": batch["label"], "index": batch["index"]}.items():
                rows[name].append(value.cpu())
    own = {name: torch.cat(rows.pop(name)) for name in list(rows)}
    parts, missing = zip(*of_all_processes((own, skipped)), strict=True)
    whole = _together([part for part in parts if part], [path for paths in missing for path in paths])
    if file and is_first_process() and not any(missing):
        write_weights(file, whole, {})
    return whole


def _read_whole(file: Path) -> Features | None:
    """The features in a file, None where there are none that can be read, and a folder to put them into."""
    if file.is_file():
        with suppress(InputError):  # one that is damaged is replaced
            features: Features = read_file(file)["model"]
            return features
    check_writable(file.parent)
    return None


def _together(parts: Sequence[Features], missing: Sequence[str]) -> Features:
    """What all processes found, in the order of the data set, without images that have no label."""
    if missing and is_first_process():
        print(f"{len(missing)} images cannot be read and are left out, the first is {missing[0]}")
    if not parts:
        raise InputError("none of the images can be read")
    whole = {name: torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}
    order = whole.pop("index").argsort()
    order = order[whole["label"][order] >= 0]
    if not len(order):
        raise InputError("none of the images has a label")
    for name, value in whole.items():
        if not value.isfinite().all():
            raise Diverged(f"features ({name}) are not finite: the encoder has diverged")
    return {name: value[order] for name, value in whole.items()}


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
