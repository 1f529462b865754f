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
from bamboo.analysis.profiles import Profile
from bamboo.analysis.profiling import profile
from bamboo.checkpoints import load_classifier, load_mae, pixel_scale
from bamboo.files import atomic_write
from bamboo.finetune.knn import collect, mean_patch_features, nearest_neighbour_accuracy
from bamboo.finetune.probing import best_layer, layer_features, probe_accuracies
from bamboo.seeds import derive_seed
from bamboo.vision.data import ImageData
from bamboo.vision.reconstruction import reconstruct

from .folders import checkpoint
from .spec import Cell, Evaluation, Study

Loader = Iterable[Mapping[str, Any]]


def measure(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, Profile], dict[str, float]]:
    """Profiles of the untrained and the trained encoder, and numbers of both its stages; `pictures.npz` is written."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    data, last, settings = open_data(config["data"]), checkpoint(folder, "train"), study.evaluation
    objective = study.objectives[cell.objective]
    masked = objective.kind == "masked"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mask_ratio = float(config["model"]["init_args"].get("mask_ratio", 0.75)) if masked else 0.0
    profiles = _profiles(folder, data, settings, mask_ratio, device)
    numbers = _probes(last, data, settings, cell.seed, device)
    numbers["encoder_parameters"] = sum(p.numel() for p in open_model(str(last)).model.parameters())
    if masked:
        numbers["loss"] = reconstruction_loss(last, data.val_dataloader(), cell.seed, device)
    if not masked or objective.then:
        numbers["accuracy"] = accuracy(checkpoint(folder, "then" if masked else "train"), data.val_dataloader(), device)
    if settings.pictures:
        _save_pictures(folder, last, data, settings.pictures, masked, cell.seed)
    return profiles, numbers


def open_data(config: Mapping[str, Any]) -> ImageData:
    """The data module that a resolved configuration names."""
    module, _, name = str(config["class_path"]).rpartition(".")
    data: ImageData = getattr(import_module(module), name)(**config["init_args"])
    return data


def _profiles(
    folder: Path, data: ImageData, settings: Evaluation, mask_ratio: float, device: torch.device
) -> dict[str, Profile]:
    """Of the untrained and the trained encoder, on training and held-out images, whole and masked."""
    train, held_out = data.probe_loaders(settings.samples)
    lengths = {"whole": 0.0, "masked": mask_ratio} if mask_ratio else {"whole": 0.0}
    profiles: dict[str, Profile] = {}
    for when, state, splits in (
        ("untrained", "start", {"held-out": held_out}),
        ("trained", "last", {"train": train, "held-out": held_out}),
    ):
        model = open_model(str(folder / "train" / f"{state}.ckpt")).model.to(device)
        for split, loader in splits.items():
            for length, ratio in lengths.items():
                label = f"{when}, {split}, {length}"
                profiles[label] = profile(model, loader, settings.measures, mask_ratio=ratio)
    return profiles


@torch.no_grad()
def _probes(source: Path, data: ImageData, settings: Evaluation, seed: int, device: torch.device) -> dict[str, float]:
    """Nearest neighbours after the final norm, and linear probes; none where there are no classes.

    The best layer is chosen on held-out training images.
    """
    if not data.num_classes:
        return {}
    encoder: Any = open_model(str(source)).model.to(device)
    scale = pixel_scale(source).to(device)
    loaders = data.probe_loaders(settings.probe_samples)
    train, test = (
        collect(lambda images: mean_patch_features(encoder, scale(images)), loader, device) for loader in loaders
    )
    features = [layer_features(encoder, scale, loader, device) for loader in loaders]
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
