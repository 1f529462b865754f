"""What is measured of a trained encoder of images."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from bamboo.analysis.maps import similarity_maps
from bamboo.analysis.model_sources import open_model
from bamboo.analysis.profiles import Profile, compare
from bamboo.analysis.profiling import profile
from bamboo.checkpoints import load_classifier, load_mae, pixel_scale
from bamboo.files import atomic_write, read_file
from bamboo.finetune.knn import collect, mean_patch_features, nearest_neighbour_accuracy
from bamboo.finetune.probing import best_layer, layer_features, probe_accuracies
from bamboo.seeds import derive_seed
from bamboo.vision.data import ImageData
from bamboo.vision.reconstruction import reconstruct

from .cells import checkpoint, write_json
from .recording import read_record
from .spec import Cell, Evaluation, Study

Loader = Iterable[Mapping[str, Any]]


def evaluate(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers and costs of a cell; profiles, the course of training and pictures go into files of its folder."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    data, last, settings = open_data(config["data"]), checkpoint(folder, "train"), study.evaluation
    masked = study.objectives[cell.objective].kind == "masked"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = read_record(read_file(last))
    mask_ratio = float(config["model"]["init_args"].get("mask_ratio", 0.75)) if masked else 0.0
    profiles = _profiles(folder, data, settings, mask_ratio, device)
    compare(profiles).save(folder / "profile")
    course = {"similarity": record["similarity"], "loss": record["losses"]}
    write_json(folder / "training.json", course)
    numbers = {**similarities(profiles), **_probes(last, data, settings, cell.seed, device)}
    numbers["activation_bytes"] = record["activation_bytes"]
    numbers["encoder_parameters"] = sum(p.numel() for p in open_model(str(last)).model.parameters())
    if masked:
        numbers["loss"] = reconstruction_loss(last, data.val_dataloader(), cell.seed, device)
    if not masked or study.objectives[cell.objective].then:
        source = last if not masked else checkpoint(folder, "then")
        numbers["accuracy"] = accuracy(source, data.val_dataloader(), device)
    if settings.pictures:
        _save_pictures(folder, last, data, settings.pictures, masked, cell.seed)
    return numbers, dict(record["cost"])


def open_data(told: Mapping[str, Any]) -> ImageData:
    """The data module that a resolved configuration names."""
    module, _, name = str(told["class_path"]).rpartition(".")
    data: ImageData = getattr(import_module(module), name)(**told["init_args"])
    return data


def _profiles(
    folder: Path, data: ImageData, settings: Evaluation, mask_ratio: float, device: torch.device
) -> dict[str, Profile]:
    """Of the untrained and the trained encoder, on training and held-out images, whole and masked."""
    found: dict[str, Profile] = {}
    for when in ("start", "last"):
        model = open_model(str(folder / "train" / f"{when}.ckpt")).model.to(device)
        for split, loader in zip(("train", "held-out"), data.probe_loaders(settings.samples), strict=True):
            if when == "start" and split == "train":
                continue
            for length, ratio in (("whole", 0.0), ("masked", mask_ratio)):
                if length == "whole" or ratio:
                    label = f"{'untrained' if when == 'start' else 'trained'}, {split}, {length}"
                    found[label] = profile(model, loader, settings.measures, mask_ratio=ratio)
    return found


def similarities(profiles: Mapping[str, Profile]) -> dict[str, float]:
    """Last-layer numbers, by short names: held-out whole images, and what differs from that."""
    short = {
        "similarity": "trained, held-out, whole",
        "similarity_untrained": "untrained, held-out, whole",
        "similarity_train": "trained, train, whole",
        "similarity_masked": "trained, held-out, masked",
        "similarity_untrained_masked": "untrained, held-out, masked",
    }
    numbers = {}
    for name, label in short.items():
        if label in profiles:
            numbers[name] = _last(profiles[label], "token_similarity")
    if profiles[short["similarity"]].has("effective_rank"):
        numbers["effective_rank"] = _last(profiles[short["similarity"]], "effective_rank")
        numbers["effective_rank_untrained"] = _last(profiles[short["similarity_untrained"]], "effective_rank")
    return numbers


def _last(found: Profile, measure: str) -> float:
    return float(found.curve(measure).mean[-1])


@torch.no_grad()
def _probes(source: Path, data: ImageData, settings: Evaluation, seed: int, device: torch.device) -> dict[str, float]:
    """Nearest neighbours after the final norm, and linear probes; none where there are no classes.

    The best layer is chosen on held-out training images.
    """
    if not data.num_classes:
        return {}
    model, scale = open_model(str(source)).model.to(device), pixel_scale(source).to(device)
    encoder: Any = model
    loaders = data.probe_loaders(settings.probe_samples)
    train, test = (collect(lambda images: mean_patch_features(encoder, scale(images)), one, device) for one in loaders)
    features = [layer_features(encoder, scale, one, device) for one in loaders]
    with torch.enable_grad():
        by_layer = probe_accuracies(features[0], features[1], device, settings.probe_epochs, seed)
        best = best_layer(features[0], device, settings.probe_epochs, seed)
    return {
        "nearest_neighbours": nearest_neighbour_accuracy(train, test),
        "linear_probe": float(by_layer[best]),
        "linear_probe_layer": best,
        "linear_probe_last": float(by_layer[-1]),
    }


@torch.no_grad()
def reconstruction_loss(source: Path, loader: Loader, seed: int, device: torch.device) -> float:
    """Mean loss over all held-out images, each under a mask that follows from the seed and its place."""
    mae, scale = load_mae(source).to(device), pixel_scale(source).to(device)
    total, count = 0.0, 0
    for number, batch in enumerate(loader):
        images = scale(batch["image"].to(device))
        generator = torch.Generator().manual_seed(derive_seed(seed, "study mask", number))
        noise = torch.rand(len(images), mae.encoder.patch_embed.num_patches, generator=generator)
        total += float(mae(images, noise.to(device)).loss) * len(images)
        count += len(images)
    return total / count


@torch.no_grad()
def accuracy(source: Path, loader: Loader, device: torch.device) -> float:
    """Share of all held-out images that a classifier gets right."""
    model, _, scale = load_classifier(source)
    model, scale = model.to(device), scale.to(device)
    right, count = 0, 0
    for batch in loader:
        predicted = model(scale(batch["image"].to(device))).argmax(1).cpu()
        right += int((predicted == batch["label"]).sum())
        count += len(predicted)
    return right / count


def _save_pictures(folder: Path, source: Path, data: ImageData, count: int, masked: bool, seed: int) -> None:
    """`pictures.npz`: the first held-out images, their reconstructions, and similarity maps layer by layer."""
    batch: Tensor = next(iter(data.probe_loaders(count)[1]))["image"][:count]
    maps = similarity_maps(open_model(str(source)).model, batch, folder.name)
    arrays: dict[str, NDArray[Any]] = {"images": maps.pictures, "to_patch": maps.to_patch, "to_mean": maps.to_mean}
    if masked:
        arrays["reconstructions"] = reconstruct(load_mae(source), pixel_scale(source), batch, seed).numpy()
    with atomic_write(folder / "pictures.npz") as temporary, temporary.open("wb") as binary:
        np.savez_compressed(binary, **arrays)  # type: ignore[arg-type]
