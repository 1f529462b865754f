"""torchvision's data sets, in the layout in which torchvision keeps them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from bamboo.errors import InputError, unknown
from bamboo.vision.folders import folder_splits
from bamboo.vision.images import Arrays
from bamboo.vision.splits import Splits

Name = Literal["CIFAR10", "CIFAR100", "STL10", "Imagenette"]
NAMES: tuple[Name, ...] = ("CIFAR10", "CIFAR100", "STL10", "Imagenette")
Part = Literal["train", "val", "unlabelled"]


def torchvision_splits(name: str, root: Path, in_chans: int, train: Part = "train") -> Splits:
    """The images as torchvision splits them; Imagenette is the edition whose shorter side has 320 pixels.

    Raises:
        InputError: for another name, or where the set is not in `root` or damaged.
    """
    if name not in NAMES:
        raise unknown("data set of torchvision", name, NAMES)
    try:
        parts = [open_torchvision(name, root, part) for part in (train, "val")]
    except (RuntimeError, OSError) as error:
        hint = "set download to true to fetch it"
        raise InputError(f"{root}: {name} is not there, or is damaged: {hint}") from error
    if name == "Imagenette":
        return folder_splits(root / "imagenette2-320", in_chans)
    return Splits(*(_arrays(part, in_chans) for part in parts))


def labelled_images(name: Name, root: Path, in_chans: int) -> Arrays:
    """The training images that have labels."""
    return _arrays(open_torchvision(name, root, "train"), in_chans)


def open_torchvision(name: str, root: Path, part: Part, download: bool = False) -> Any:
    """A part of a set as torchvision's class, downloaded if asked to."""
    options: dict[str, Any] = {"train": part == "train"}
    if name == "STL10":
        options = {"split": {"train": "train", "val": "test", "unlabelled": "unlabeled"}[part]}
    elif name == "Imagenette":
        options = {"split": part, "size": "320px"}
    return getattr(datasets, name)(root, download=download, **options)


def _arrays(dataset: Any, in_chans: int) -> Arrays:
    images = torch.from_numpy(dataset.data)  # STL10's is a transposed view of 2.8 GB, which is not copied
    images = images.movedim(-1, 1) if images.shape[-1] == 3 else images  # CIFAR has channels last, STL10 first
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Arrays(with_channels(images, in_chans), np.asarray(labels, np.int64))


def with_channels(images: Tensor, in_chans: int) -> Tensor:
    """Grey or RGB bytes (N, C, H, W) as grey, RGB or RGB with alpha."""
    if in_chans == 1:
        return images if images.shape[1] == 1 else v2.functional.rgb_to_grayscale(images)
    colour = images.expand(-1, 3, -1, -1)
    return colour if in_chans == 3 else torch.cat([colour, torch.full_like(colour[:, :1], 255)], dim=1)
