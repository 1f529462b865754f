"""What the frozen features of an encoder of images are worth, at its own width and at that of the narrowest shape."""

from pathlib import Path
from typing import Any

import torch

from bamboo.analysis.model_sources import open_model
from bamboo.checkpoints import pixel_scale
from bamboo.finetune.features import extract
from bamboo.finetune.knn import nearest_neighbour_accuracy
from bamboo.finetune.probing import by_layer, choose, layer_features, probe_accuracies, project
from bamboo.vision.data import ImageData

from .spec import Evaluation


def probe(
    source: Path, data: ImageData, settings: Evaluation, width: int, seed: int, device: torch.device
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Numbers of probes, and the accuracies of linear ones by layer; none where there are no classes.

    Nearest neighbours are those after the final norm, and the layer of the linear probe is chosen on held-out training
    images. The same is done with features that are projected to `width`, unless they are no wider.
    """
    if not data.num_classes:
        return {}, {}
    encoder: Any = open_model(str(source)).model.to(device)
    scale = pixel_scale(source).to(device)
    compute = layer_features(encoder, scale)
    layers = [by_layer(extract(compute, part, device)) for part in data.probe_loaders(settings.probe_samples)]

    def measure(size: int) -> tuple[float, list[float], int]:
        """Accuracy of nearest neighbours and of linear probes by layer, and the best layer, at a width."""
        train, test = (part._replace(features=project(part.features, size)) for part in layers)
        accuracies = probe_accuracies(train, test, device, settings.probe_epochs, seed)[0].tolist()
        best = choose(train, device, settings.probe_epochs, seed).layer
        bank, queries = ((project(part.normed.to(device), size), part.labels.to(device)) for part in layers)
        return nearest_neighbour_accuracy(bank, queries), accuracies, best

    own = layers[0].features.shape[-1]
    plain = measure(own)
    projected = measure(width) if own > width else plain
    numbers = {"projected_width": width, "linear_probe_layer": plain[2], "linear_probe_last": plain[1][-1]}
    curves = {}
    for suffix, (neighbours, accuracies, best) in {"": plain, "_projected": projected}.items():
        numbers |= {f"nearest_neighbours{suffix}": neighbours, f"linear_probe{suffix}": accuracies[best]}
        curves[f"linear_probe{suffix}"] = accuracies
    return numbers, curves
