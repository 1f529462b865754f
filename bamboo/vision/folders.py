"""Folders of images: which files there are, which classes they have, and what is held out for validation."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.vision.images import Files, Source, Unreadable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the files that are taken for images."""


class Sources(NamedTuple):
    """The images to train on and those to validate on."""

    train: Source
    val: Source


def folder_sources(
    root: Path, in_chans: int, val_fraction: float = 0.05, seed: int = 0, val_labels: Path | None = None
) -> Sources:
    """The images of a folder in any of the layouts that `ImageFolder` describes."""
    train_root = root / "train" if (root / "train").is_dir() else root
    train = _scan_source(train_root, in_chans, ", or one with train/ and val/ in it")
    held_out = [root / name for name in ("val", "test") if (root / name).is_dir()] if train_root != root else []
    if not held_out:
        return hold_out(train, val_fraction, seed)
    val = _scan_source(held_out[0], in_chans)
    if val_labels:
        val = replace(val, labels=read_labels(val_labels, val, train.classes))
    elif train.classes != val.classes:
        only = ", ".join(sorted(set(train.classes) ^ set(val.classes))[:3])
        raise InputError(f"{held_out[0]}: its class folders must be those of {train_root}; in one of them only: {only}")
    return Sources(train, val)


def all_images(root: Path, in_chans: int, classes: tuple[str, ...]) -> Source:
    """Every image of a folder; those in a sub-folder that bears the name of a class have its label, others -1."""
    files = _scan_source(root, in_chans)
    if not files.classes:
        return files
    numbers = [classes.index(name) if name in classes else -1 for name in files.classes]
    return replace(files, labels=np.array(numbers, np.int64)[files.labels])


def read_labels(path: Path, files: Files, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """The class of each file by a text file: see `val_labels` of `ImageFolder`.

    Raises:
        InputError: for a file that cannot be read, a class that is none of `classes`, or an image without a line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels {path}: {error}") from error
    class_numbers = {**{str(number): number for number in range(len(classes))}, **{c: i for i, c in enumerate(classes)}}
    file_numbers = _numbers_by_name(files)
    labels = np.full(len(files), -1, np.int64)
    for line_number, line in enumerate(lines, start=1):
        name, class_name, *_ = [*re.split(r"[,\s]+", line.strip()), ""]
        file_number = file_numbers.get(name.rpartition("/")[2])
        if file_number is None:  # a heading, or a file that is not there
            continue
        if class_name not in class_numbers:
            raise InputError(f"{path}, line {line_number}: class {class_name!r} has no folder among the {len(classes)}")
        labels[file_number] = class_numbers[class_name]
    if labels.min() < 0:
        raise InputError(f"{path} has no line for {files.name(int(labels.argmin()))}")
    return labels


def _numbers_by_name(files: Files) -> dict[str, int]:
    """The index of each file by its name, with and without the ending."""
    names = [os.fsdecode(name).rpartition("/")[2] for name in files.names]
    return {key: number for number, name in enumerate(names) for key in (name, name.rpartition(".")[0])}


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


def _scan_source(root: Path, in_chans: int, alternative: str = "") -> Files:
    """The images of a folder, with classes where it is made of two or more class folders."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a folder of images{alternative}")
    paths = list(scan(root))
    if not paths:
        raise InputError(f"{root}: no images in it; expected files that end in {' '.join(EXTENSIONS)}")
    folders = [path.partition("/")[0] for path in paths]
    classes = sorted(set(folders)) if all("/" in path for path in paths) else []
    classes = classes if len(classes) > 1 else []
    if classes:
        _check_filled(root, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers.get(folder, -1) for folder in folders], np.int64)
    files = Files(root, np.array([os.fsencode(path) for path in paths]), labels, in_chans, tuple(classes))
    check_readable(files)
    return files


def _check_filled(root: Path, classes: list[str]) -> None:
    """A class folder without images would give the classes after it other numbers than elsewhere."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(folders - set(classes))
    if empty:
        raise InputError(f"{root / empty[0]}: a class folder without images; fill it or remove it")


def check_readable(source: Source) -> None:
    """Raise `InputError` where none of the images can be read."""
    for index in range(len(source)):
        try:
            source.read(index)
            return
        except Unreadable:
            continue
    where = f"{source.root}: " if isinstance(source, Files) else ""
    raise InputError(f"{where}none of its {len(source)} images can be read, the first is {source.name(0)}")


def hold_out(source: Source, fraction: float, seed: int) -> Sources:
    """A share of the images, drawn by the seed, to validate on, and the others to train on; at least one of each."""
    if len(source) < 2:
        raise InputError(f"{source.name(0)}: expected at least two images, one to train on and one to validate on")
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(len(source), generator=generator).numpy()
    count = min(max(1, round(fraction * len(source))), len(source) - 1)
    return Sources(source.subset(np.sort(order[count:])), source.subset(np.sort(order[:count])))
