"""Folders of images: which files there are, which classes they have, and what is held out for validation."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.vision.images import Files, Source, Unreadable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the files that are taken for images."""


class Sources(NamedTuple):
    """The images to train on and those to validate on."""

    train: Source
    val: Source


def folder_sources(root: Path, in_chans: int, val_fraction: float = 0.05, seed: int = 0) -> Sources:
    """The images of a folder in any of the layouts that `ImageFolder` describes.

    Raises:
        InputError: where there is no image that can be read, or the classes of training and validation differ.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a folder of images, or one with train/ and val/ in it")
    train_root = root / "train" if (root / "train").is_dir() else root
    train, classes = _scan_source(train_root, in_chans)
    held_out = [root / name for name in ("val", "test") if (root / name).is_dir()] if train_root != root else []
    if not held_out:
        return _hold_out(train, val_fraction, seed, root)
    val, val_classes = _scan_source(held_out[0], in_chans)
    if classes != val_classes:
        only = ", ".join(sorted(set(classes) ^ set(val_classes))[:3])
        raise InputError(f"{held_out[0]}: its class folders must be those of {train_root}; in one of them only: {only}")
    return Sources(train, val)


def scan(folder: Path | str, prefix: str = "") -> Iterator[str]:
    """Paths of the images in a folder and below it, relative to it, sorted folder by folder; hidden ones left out."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from scan(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name


def _scan_source(root: Path, in_chans: int) -> tuple[Files, list[str]]:
    """The images of a folder and the names of their classes, none where it is not made of class folders."""
    paths = list(scan(root))
    if not paths:
        raise InputError(f"{root}: no images in it; expected files that end in {' '.join(EXTENSIONS)}")
    folders = [path.partition("/")[0] for path in paths]
    classes = sorted(set(folders)) if all("/" in path for path in paths) else []
    numbers = {name: number for number, name in enumerate(classes)} if len(classes) > 1 else {}
    labels = np.array([numbers.get(folder, -1) for folder in folders], np.int64)
    files = Files(root, np.array([os.fsencode(path) for path in paths]), labels, in_chans)
    _check_readable(files, root)
    return files, list(numbers)


def _check_readable(files: Files, root: Path) -> None:
    for index in range(len(files)):
        try:
            files.read(index)
            return
        except Unreadable:
            continue
    raise InputError(f"{root}: none of its {len(files)} images can be read, the first is {files.name(0)}")


def _hold_out(source: Files, fraction: float, seed: int, root: Path) -> Sources:
    if len(source) < 2:
        raise InputError(f"{root}: expected at least two images, one to train on and one to validate on")
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(len(source), generator=generator).numpy()
    count = min(max(1, round(fraction * len(source))), len(source) - 1)
    return Sources(source.subset(np.sort(order[count:])), source.subset(np.sort(order[:count])))
