"""`bamboo knn` and `bamboo probe`: what a frozen encoder knows, without training it."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from bamboo.errors import InputError
from bamboo.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from timm.models.vision_transformer import VisionTransformer

    from bamboo.vision.data import ImageData
    from bamboo.vision.pixels import PixelScale

    from .features import Features

FEWEST = 10
"""Training images for a probe: a fifth of them chooses."""


def knn(
    encoder: str,
    *,
    data: str,
    k: list[int] = [20],  # noqa: B006 (never changed)
    features: list[Literal["mean", "cls"]] = ["mean"],  # noqa: B006
    image_size: int | None = None,
    samples: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    precision: Precision = "auto",
    cache: Path | None = None,
) -> None:
    """Print the accuracy of nearest neighbours on frozen features, as the evaluation of DINO has it.

    Runs on several processes too: torchrun --nproc-per-node 8 -m bamboo knn ...

    Args:
        encoder: a checkpoint, `timm:NAME`, `timm:NAME@FILE`, a Hugging Face folder or `hf:NAME`.
        data: `digits`, or a SOURCE of labelled images: a folder with one sub-folder per class, below `train/` and
            `val/` or split at random, tar or Parquet files, `hf:NAME`.
        k: training images that vote; several numbers are tried beside each other.
        features: after the final norm, `mean` of the patch tokens or `cls`, the class token, or both.
        image_size: side of the images in pixels; by default that of the encoder.
        samples: training images, and validation images, at most; evenly spread.
        batch_size: images at a time.
        num_workers: processes that read images.
        seed: of the split, where the data have none of their own; that of pretraining keeps its test images unseen.
        precision: run the encoder in fp32 (`32`) or under `bf16` autocast; `auto` is bf16 on a GPU that has it.
        cache: folder to keep features in, for the next time that the same encoder sees the same images.
    """
    from bamboo.tables import table

    from .features import normed_features
    from .knn import classes_by_votes

    if min(*k, samples or 1) < 1 or samples == 0:
        raise InputError(f"k and samples must be at least 1, got {min(k)} and {samples}")
    opened = _open(encoder, image_size, precision)
    if "cls" in features and opened.encoder.cls_token is None:
        raise InputError("this encoder has no class token: give --features mean")
    compute = normed_features(opened.encoder, opened.scale)
    parts = _features(opened, _data(data, opened, batch_size, num_workers, seed), samples, cache, "normed", compute)
    train, test = ({name: value.to(opened.device) for name, value in part.items()} for part in parts)
    rows: list[tuple[str, ...]] = [("features", "k", "top-1", "top-5")]
    for name in features:
        elected = classes_by_votes((train[name], train["label"]), test[name], k)
        right = elected == test["label"][:, None]
        for number, each in zip(k, right, strict=True):
            voters = str(min(number, len(train["label"])))
            shares = (float(share.double().mean()) for share in (each[:, 0], each.any(dim=1)))
            rows.append((name, voters, *(f"{share:.2%}" for share in shares)))
    print(f"nearest neighbours of {len(test['label'])} images among {len(train['label'])}\n{table(rows)}")


def probe(
    encoder: str,
    *,
    data: str,
    out: Path,
    lr: list[float] = [0.01],  # noqa: B006 (never changed)
    image_size: int | None = None,
    baseline: bool = False,
    epochs: int = 50,
    samples: int = 10_000,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    precision: Precision = "auto",
    cache: Path | None = None,
) -> None:
    """Train a linear classifier on every layer of a frozen encoder; write accuracy and token similarity by depth.

    The learning rate of each layer, if there are several, and the best layer, of which a line is printed, are chosen on
    a fifth of the training images and not on the test images. The encoder runs once over the images; its features are
    kept in memory: samples x layers x width x 4 bytes. Runs on several processes too: torchrun --nproc-per-node 8 -m
    bamboo probe ...

    Args:
        encoder: a checkpoint, `timm:NAME`, `timm:NAME@FILE`, a Hugging Face folder or `hf:NAME`.
        data: `digits`, or a SOURCE of labelled images: a folder with one sub-folder per class, below `train/` and
            `val/` or split at random, tar or Parquet files, `hf:NAME`.
        out: folder for probe.csv, probe.png and probe.svg.
        lr: learning rates of the classifiers; several are trained side by side, in one pass.
        image_size: side of the images in pixels; by default that of the encoder.
        baseline: do the same with fresh weights, for comparison.
        epochs: passes over the features.
        samples: training images, and validation images, at most; evenly spread.
        batch_size: images at a time.
        num_workers: processes that read images.
        seed: of the split, as for `bamboo knn`, of the order of training, and of fresh weights.
        precision: run the encoder in fp32 (`32`) or under `bf16` autocast; `auto` is bf16 on a GPU that has it.
        cache: folder to keep features in, for the next time that the same encoder sees the same images.
    """
    import pandas as pd

    from bamboo.analysis.model_sources import Opened, fresh_copy
    from bamboo.analysis.plots import save_figure
    from bamboo.files import check_writable, write_text
    from bamboo.processes import is_first_process

    from .probing import by_layer, choose, layer_features, probe_accuracies

    if min(lr) <= 0 or epochs < 1 or samples < 1:
        raise InputError(f"lr, epochs and samples must be positive, got {min(lr)}, {epochs} and {samples}")
    if is_first_process():
        check_writable(out)
    opened = _open(encoder, image_size, precision)
    images = _data(data, opened, batch_size, num_workers, seed)
    models = {"encoder": opened}
    if baseline:
        fresh = fresh_copy(Opened(encoder, encoder, opened.encoder, None), seed).model
        models["fresh weights"] = opened._replace(encoder=fresh.to(opened.device))
    tables, lines = [], []
    for label, each in models.items():
        parts = _features(each, images, samples, cache, "layers", layer_features(each.encoder, each.scale))
        if not is_first_process():
            continue
        train, test = map(by_layer, parts)
        if len(train.labels) < FEWEST:
            raise InputError(f"{len(train.labels)} training images are too few for a probe: give {FEWEST} or more")
        lrs, layer = choose(train, each.device, epochs, seed, lr)
        accuracies = probe_accuracies(train, test, each.device, epochs, seed, lr)[lrs, range(len(lrs))].tolist()
        numbers = {"accuracy": accuracies, "lr": [lr[place] for place in lrs]}
        numbers |= {"token_similarity": test.similarity.tolist()}
        tables.append(pd.DataFrame({"encoder": label, "layer": range(len(accuracies)), **numbers}))
        chosen = f"best at layer {layer} of {len(each.encoder.blocks)}" + f", lr {lr[lrs[layer]]:g}," * (len(lr) > 1)
        chosen += " on held-out training images"
        lines.append(f"{label}: {chosen}, where {accuracies[layer]:.2%} of the test images are right")
    if not tables:
        return
    table = pd.concat(tables)
    csv = write_text(out / "probe.csv", table.to_csv(index=False, float_format="%.6g"))
    paths = [csv, *save_figure(_figure(table), out / "probe")]
    print(*(f"wrote {path}" for path in paths), *lines, sep="\n")


class Frozen(NamedTuple):
    """An encoder in evaluation mode on a device, how its images are standardised, and the precision that it runs in."""

    encoder: "VisionTransformer"
    scale: "PixelScale"
    device: "torch.device"
    precision: Precision


def _open(source: str, image_size: int | None, precision: Precision) -> Frozen:
    import torch

    from bamboo.checkpoints import load_encoder, pixel_scale

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, report = load_encoder(source, image_size)
    print(report)
    return Frozen(encoder.to(device), pixel_scale(source).to(device), device, precision)


def _data(data: str, opened: Frozen, batch_size: int, num_workers: int, seed: int) -> "ImageData":
    from bamboo.vision.data import image_data

    encoder = opened.encoder
    options = {"image_size": encoder.patch_embed.img_size, "in_chans": encoder.patch_embed.proj.in_channels}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
    module = image_data(data, **options)
    if not module.num_classes:
        raise InputError(f"{data} has no classes: expected labels, such as one sub-folder of images per class")
    return module


def _features(
    opened: Frozen,
    images: "ImageData",
    samples: int | None,
    cache: Path | None,
    kind: str,
    compute: "Callable[[torch.Tensor], Features]",
) -> "list[Features]":
    """What `compute` gives of the training and of the validation images, or what the cache holds of this kind."""
    from bamboo.precision import autocast
    from bamboo.processes import is_first_process

    from .features import extract, fingerprint

    parts = []
    for loader, title in zip(images.probe_loaders(samples, shared=True), ("training", "validation"), strict=True):
        file = None
        if cache:
            settings = kind, opened.precision, opened.device.type
            key = fingerprint(opened.encoder, opened.scale, loader.dataset.source, *settings)  # type: ignore[attr-defined]
            file = cache / f"{kind}-{key}.safetensors"
        with autocast(opened.precision, opened.device):
            progress = f"{title} images" if is_first_process() else None
            parts.append(extract(compute, loader, opened.device, progress, file))
    return parts


def _figure(table: "pd.DataFrame") -> "Figure":
    from matplotlib.figure import Figure

    from bamboo.analysis.plots import COLOURS, MARKS, style

    with style():
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        for axis, column in zip(figure.subplots(1, 2), ("accuracy", "token_similarity"), strict=True):
            for number, (label, rows) in enumerate(table.groupby("encoder", sort=False)):
                look = {"color": COLOURS[number], "marker": MARKS[number], "markersize": 3, "label": label}
                axis.plot(rows["layer"], rows[column], **look)
            axis.set(title=column.replace("_", " "), xlabel="layer")
            axis.legend()
    return figure
