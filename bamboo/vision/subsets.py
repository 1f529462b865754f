"""Fewer labels: a part of a training set that is the same for the same seed and holds every class in proportion."""

import numpy as np
import torch

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.vision.images import Source


def few(source: Source, fraction: float = 1.0, shots: int | None = None, seed: int = 0) -> Source:
    """Part of a training set, drawn class by class, in the order of the whole; a smaller part lies in a larger one.

    Args:
        source: all of it.
        fraction: share of each class, at least one image.
        shots: images of each class, instead.
        seed: of the draw.

    Raises:
        InputError: where there are no classes to draw from, or a class has fewer images than `shots`.
    """
    if fraction == 1 and shots is None:
        return source
    if source.labels.min() < 0:
        raise InputError("fraction and shots draw from classes: expected one sub-folder per class")
    chosen = []
    for label in np.unique(source.labels).tolist():
        members = np.flatnonzero(source.labels == label)
        count = shots or max(1, round(fraction * len(members)))
        if count > len(members):
            name = source.classes[label] if source.classes else label
            raise InputError(f"class {name} has {len(members)} training images, fewer than shots {shots}")
        generator = torch.Generator().manual_seed(derive_seed(seed, "few", label))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count].numpy()])
    return source.subset(np.sort(np.concatenate(chosen)))
