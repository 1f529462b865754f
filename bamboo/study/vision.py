"""What is measured of a trained encoder of images."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn

from bamboo.analysis.maps import similarity_maps
from bamboo.analysis.model_sources import open_model
from bamboo.analysis.profiles import Profile
from bamboo.analysis.profiling import profile
from bamboo.checkpoints import load_classifier, load_mae, pixel_scale, read_file
from bamboo.files import atomic_write, write_json
from bamboo.seeds import derive_seed
from bamboo.vision.data import ImageData
from bamboo.vision.reconstruction import reconstruct

from .folders import LAYERS, checkpoint
from .probes import probe
from .results import FINETUNED, TRAIN, UNTRAINED, VISIBLE, VISIBLE_UNTRAINED, WHOLE
from .spec import Cell, Evaluation, Study

MASK_RATIO = 0.75
"""Of masked training, where a study has none or says nothing else: that of He et al. 2022."""

Loader = Iterable[Mapping[str, Any]]


def measure(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, Profile], dict[str, float]]:
    """Profiles of the encoder before, after and between its stages, and numbers of them.

    Accuracies of probes by layer are written to `layers.json`, and `pictures.npz`.
    """
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "train.yaml"))
    data, last, settings = open_data(config["data"]), checkpoint(folder, "train"), study.evaluation
    objective = study.objectives[cell.objective]
    masked = objective.kind == "masked"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profiles = _profiles(folder, data, settings, mask_ratio(study, cell.objective, config), device)
    width = min(shape.width for shape in study.shapes.values())
    numbers, layers = probe(last, data, settings, width, cell.seed, device)
    write_json(folder / LAYERS, layers)
    numbers["parameters"] = _count(load_mae(last) if masked else load_classifier(last)[0])
    numbers["encoder_parameters"] = _count(open_model(str(last)).model)
    if masked:
        numbers["loss"] = reconstruction_loss(last, data.val_dataloader(), cell.seed, device)
    if not masked or objective.then:
        stage, classified = "train", data
        if objective.then:  # which may be of other images
            follows: Any = OmegaConf.to_container(OmegaConf.load(folder / "then.yaml"))
            stage, classified = "then", open_data(follows["data"])
        numbers["accuracy"] = accuracy(checkpoint(folder, stage), classified.val_dataloader(), device)
    if settings.pictures:
        _save_pictures(folder, last, data, settings.pictures, masked, cell.seed)
    return profiles, numbers


def mask_ratio(study: Study, objective: str, config: Mapping[str, Any]) -> float:
    """Share of patches that the visible share is without: that of the cell's own `config`, if it is trained on masked
    images, else of the first objective of the study that is."""
    masked = [other.config for other in study.objectives.values() if other.kind == "masked"]
    configs = [config] if study.objectives[objective].kind == "masked" else masked
    ratios = [configuration["model"]["init_args"].get("mask_ratio", MASK_RATIO) for configuration in configs]
    return float(ratios[0]) if ratios else MASK_RATIO


def open_data(config: Mapping[str, Any]) -> ImageData:
    """The data module that a resolved configuration names."""
    module, _, name = str(config["class_path"]).rpartition(".")
    data: ImageData = getattr(import_module(module), name)(**config["init_args"])
    return data


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _profiles(
    folder: Path, data: ImageData, settings: Evaluation, hidden: float, device: torch.device
) -> dict[str, Profile]:
    """Of the encoder untrained, trained and fine-tuned, on whole images and on what a mask leaves of them."""
    train, held_out = data.probe_loaders(settings.samples)
    start, last, finetuned = folder / "train" / "start.ckpt", checkpoint(folder, "train"), checkpoint(folder, "then")
    plan = {
        UNTRAINED: (start, held_out, 0.0),
        VISIBLE_UNTRAINED: (start, held_out, hidden),
        WHOLE: (last, held_out, 0.0),
        VISIBLE: (last, held_out, hidden),
        TRAIN: (last, train, 0.0),
        FINETUNED: (finetuned, held_out, 0.0),
    }
    return {
        label: profile(_encoder(source).to(device), loader, settings.measures, mask_ratio=ratio)
        for label, (source, loader, ratio) in plan.items()
        if source.is_file()  # not every objective has fine-tuning
    }


def _encoder(source: Path) -> nn.Module:
    """The encoder of a checkpoint; where the norm comes after the mean over patches, it has none for its tokens."""
    model: nn.Module = open_model(str(source)).model
    if read_file(source)["hyper_parameters"].get("pool") == "avg":
        model.norm = nn.Identity()
    return model


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
