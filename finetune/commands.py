"""`bamboo knn` and `bamboo probe`: what a frozen encoder knows, without training it."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bamboo.errors import InputError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from timm.models.vision_transformer import VisionTransformer

    from bamboo.vision.data import ImageData
    from bamboo.vision.pixels import PixelScale

COLUMNS = ("encoder", "layer", "accuracy", "token_similarity")


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
        data: a folder with one sub-folder per class, below `train/` and `val/` or split at random, or `digits`.
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
    train, test = (collect(lambda images: mean_patch_features(model, scale(images)), one, device) for one in loaders)
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
        data: a folder with one sub-folder per class, below `train/` and `val/` or split at random, or `digits`.
        out: folder for probe.csv, probe.png and probe.svg.
        image_size: side of the images in pixels; by default that of the encoder.
        baseline: do the same with fresh weights, for comparison.
        epochs: passes over the features.
        samples: training images, and validation images, at most; evenly spread.
        batch_size: images at a time.
        num_workers: processes that read images.
        seed: of the split, as for `bamboo knn`, of the order of training, and of fresh weights.
    """
    model, scale, device = _open(encoder, image_size)
    loaders = _data(data, model, batch_size, num_workers, seed)
    models = {"encoder": model, **({"fresh weights": _fresh(model, seed).to(device)} if baseline else {})}
    rows: list[tuple[str, int, float, float]] = []
    best: dict[str, int] = {}
    for label, each in models.items():
        found, best[label] = _probe(label, each, scale, loaders, device, (epochs, samples, seed))
        rows += found
    _write(rows, out)
    accuracies = {(label, layer): accuracy for label, layer, accuracy, _ in rows}
    for label, layer in best.items():
        chosen = f"best at layer {layer} of {len(model.blocks)} on held-out training images"
        print(f"{label}: {chosen}, where {accuracies[label, layer]:.2%} of the test images are right")


def _probe(
    label: str,
    model: "VisionTransformer",
    scale: "PixelScale",
    data: "ImageData",
    device: "torch.device",
    how: tuple[int, int, int],
) -> tuple[list[tuple[str, int, float, float]], int]:
    from .probing import best_layer, layer_features, probe_accuracies

    epochs, samples, seed = how
    train, test = (layer_features(model, scale, loader, device) for loader in data.probe_loaders(samples))
    accuracy = probe_accuracies(train, test, device, epochs, seed).tolist()
    pairs = zip(accuracy, test.similarity.tolist(), strict=True)
    rows = [(label, layer, right, similarity) for layer, (right, similarity) in enumerate(pairs)]
    return rows, best_layer(train, device, epochs, seed)


def _open(source: str, image_size: int | None) -> tuple["VisionTransformer", "PixelScale", "torch.device"]:
    import torch

    from bamboo.checkpoints import load_encoder, pixel_scale

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, report = load_encoder(source, image_size)
    print(report)
    return encoder.to(device), pixel_scale(source).to(device), device


def _data(data: str, encoder: "VisionTransformer", batch_size: int, num_workers: int, seed: int) -> "ImageData":
    from bamboo.vision.data import Digits, ImageData, ImageFolder

    height, width = encoder.patch_embed.img_size
    options = {"image_size": (height, width), "in_chans": encoder.in_chans, "num_workers": num_workers, "seed": seed}
    module: ImageData
    if data == "digits":
        module = Digits(batch_size=batch_size, **options)
    else:
        module = ImageFolder(data, batch_size=batch_size, **options)
    if not module.num_classes:
        raise InputError(f"{data} has no classes: expected one sub-folder of images per class")
    return module


def _fresh(model: "VisionTransformer", seed: int) -> "VisionTransformer":
    import torch

    from bamboo.vision.encoder import build_encoder, patches_of, shape_of

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(shape_of(model), patches_of(model), getattr(model, "init", "mae")).eval()


def _write(rows: Sequence[tuple[str, int, float, float]], out: Path) -> None:
    from bamboo.analysis.plots import save_figure
    from bamboo.files import atomic_write

    table = out / "probe.csv"
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([label, layer, f"{right:.6f}", f"{cosine:.6f}"] for label, layer, right, cosine in rows)
    for path in (table, *save_figure(_figure(rows), out / "probe")):
        print(f"wrote {path}")


def _figure(rows: Sequence[tuple[str, int, float, float]]) -> "Figure":
    from matplotlib.figure import Figure

    from bamboo.analysis.plots import COLOURS, MARKS, style

    with style():
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        for axis, column, title in zip(figure.subplots(1, 2), (2, 3), ("accuracy", "token similarity"), strict=True):
            for number, label in enumerate(dict.fromkeys(row[0] for row in rows)):
                mine = [row for row in rows if row[0] == label]
                look = {"color": COLOURS[number], "marker": MARKS[number], "markersize": 3, "label": label}
                axis.plot([row[1] for row in mine], [row[column] for row in mine], **look)
            axis.set(title=title, xlabel="layer")
            axis.legend()
    return figure
