"""`bamboo knn` and `bamboo probe`: what a frozen encoder knows, without training it."""

from pathlib import Path
from typing import TYPE_CHECKING

from bamboo.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from timm.models.vision_transformer import VisionTransformer

    from bamboo.vision.data import ImageData
    from bamboo.vision.pixels import PixelScale


def knn(
    encoder: str,
    *,
    data: str,
    image_size: int | None = None,
    neighbours: int = 20,
    samples: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> None:
    """Print the accuracy of nearest neighbours on frozen features: the mean of the patch tokens after the final norm.

    Args:
        encoder: a checkpoint, `timm:NAME`, `timm:NAME@FILE`, a Hugging Face folder or `hf:NAME`.
        data: `digits`, or a SOURCE of labelled images: a folder with one sub-folder per class, below `train/` and
            `val/` or split at random, tar or Parquet files, `hf:NAME`.
        image_size: side of the images in pixels; by default that of the encoder.
        neighbours: training images that vote.
        samples: training images, and validation images, at most; evenly spread.
        batch_size: images at a time.
        num_workers: processes that read images.
        seed: of the split, where the data have none of their own; that of pretraining keeps its test images unseen.
    """
    from .knn import collect, mean_patch_features, nearest_neighbour_accuracy

    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")
    model, scale, device = _open(encoder, image_size)
    loaders = _data(data, model, batch_size, num_workers, seed).probe_loaders(samples)
    train, test = (
        collect(lambda images: mean_patch_features(model, scale(images)), loader, device) for loader in loaders
    )
    accuracy = nearest_neighbour_accuracy(train, test, neighbours=neighbours)
    print(f"{neighbours} nearest neighbours of {len(train[1])} images: {accuracy:.2%} of {len(test[1])} images right")


def probe(
    encoder: str,
    *,
    data: str,
    out: Path,
    image_size: int | None = None,
    baseline: bool = False,
    epochs: int = 50,
    samples: int = 10_000,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> None:
    """Train a linear classifier on every layer of a frozen encoder; write accuracy and token similarity by depth.

    The best layer, of which a line is printed, is chosen on a fifth of the training images and not on the test images.
    The encoder runs once over the images; its features are kept in memory: samples x layers x width x 4 bytes.

    Args:
        encoder: a checkpoint, `timm:NAME`, `timm:NAME@FILE`, a Hugging Face folder or `hf:NAME`.
        data: `digits`, or a SOURCE of labelled images: a folder with one sub-folder per class, below `train/` and
            `val/` or split at random, tar or Parquet files, `hf:NAME`.
        out: folder for probe.csv, probe.png and probe.svg.
        image_size: side of the images in pixels; by default that of the encoder.
        baseline: do the same with fresh weights, for comparison.
        epochs: passes over the features.
        samples: training images, and validation images, at most; evenly spread.
        batch_size: images at a time.
        num_workers: processes that read images.
        seed: of the split, as for `bamboo knn`, of the order of training, and of fresh weights.
    """
    import pandas as pd

    from bamboo.analysis.model_sources import Opened, fresh_copy
    from bamboo.analysis.plots import save_figure
    from bamboo.files import write_text

    from .probing import best_layer, layer_features, probe_accuracies

    model, scale, device = _open(encoder, image_size)
    images = _data(data, model, batch_size, num_workers, seed)
    models = {"encoder": model}
    if baseline:
        models["fresh weights"] = fresh_copy(Opened(encoder, encoder, model, None), seed).model
    tables, lines = [], []
    for label, each in models.items():
        train, test = (layer_features(each, scale, loader, device) for loader in images.probe_loaders(samples))
        accuracies = probe_accuracies(train, test, device, epochs, seed).tolist()
        numbers = {"accuracy": accuracies, "token_similarity": test.similarity.tolist()}
        tables.append(pd.DataFrame({"encoder": label, "layer": range(len(accuracies)), **numbers}))
        layer = best_layer(train, device, epochs, seed)
        chosen = f"best at layer {layer} of {len(model.blocks)} on held-out training images"
        lines.append(f"{label}: {chosen}, where {accuracies[layer]:.2%} of the test images are right")
    table = pd.concat(tables)
    csv = write_text(out / "probe.csv", table.to_csv(index=False, float_format="%.6f"))
    paths = [csv, *save_figure(_figure(table), out / "probe")]
    print(*(f"wrote {path}" for path in paths), *lines, sep="\n")


def _open(source: str, image_size: int | None) -> tuple["VisionTransformer", "PixelScale", "torch.device"]:
    import torch

    from bamboo.checkpoints import load_encoder, pixel_scale

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, report = load_encoder(source, image_size)
    print(report)
    return encoder.to(device), pixel_scale(source).to(device), device


def _data(data: str, encoder: "VisionTransformer", batch_size: int, num_workers: int, seed: int) -> "ImageData":
    from bamboo.vision.data import image_data

    options = {"image_size": encoder.patch_embed.img_size, "in_chans": encoder.in_chans}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
    module = image_data(data, **options)
    if not module.num_classes:
        raise InputError(f"{data} has no classes: expected labels, such as one sub-folder of images per class")
    return module


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
