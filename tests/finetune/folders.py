"""Digits as image files, in the layouts of classification data."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = tuple(f"digit_{number}" for number in range(10))


@functools.cache
def pictures() -> tuple[list[Image.Image], list[int]]:
    """All digits as pictures of 20 x 24 pixels, and their classes."""
    digits = load_digits()
    grey = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in digits.images]
    return [image.resize((24, 20), Image.Resampling.BILINEAR) for image in grey], digits.target.tolist()


def write_classes(folder: Path, start: int, count: int) -> Path:
    """Digits number `start` and on, in one sub-folder per class."""
    images, labels = pictures()
    for number in range(start, start + count):
        place = folder / NAMES[labels[number]] / f"{number:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        images[number].save(place)
    return folder


def write_flat(folder: Path, start: int, count: int) -> list[tuple[str, int]]:
    """The same without sub-folders; the names of the files and their classes."""
    images, labels = pictures()
    folder.mkdir(parents=True)
    rows = []
    for number in range(start, start + count):
        images[number].save(folder / f"{number:04}.png")
        rows.append((f"{number:04}.png", labels[number]))
    return rows
