"""Folders of images: which files there are, and which classes they have."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError
from bamboo.vision.images import EXTENSIONS, Files
from bamboo.vision.splits import Splits


def folder_splits(root: Path, in_chans: int, val_labels: Path | None = None) -> Splits:
    """The images of a folder in any of the layouts that `ImageFolder` describes."""
    train_root = root / "train" if (root / "train").is_dir() else root
    train = scan_source(train_root, in_chans, ", or one with train/ and val/ in it")
    held_out = [root / name for name in ("val", "test") if (root / name).is_dir()] if train_root != root else []
    if not held_out:
        return Splits(train)
    val = scan_source(held_out[0], in_chans)
    if val_labels:
        val = replace(val, labels=read_labels(val_labels, val, train.classes), classes=train.classes)
    return Splits(train, val)


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


def scan_source(root: Path, in_chans: int, alternative: str = "") -> Files:
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
    return Files(root, np.array([os.fsencode(path) for path in paths]), labels, in_chans, tuple(classes))


def _check_filled(root: Path, classes: list[str]) -> None:
    """A class folder without images would give the classes after it other numbers than elsewhere."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(folders - set(classes))
    if empty:
        raise InputError(f"{root / empty[0]}: a class folder without images; fill it or remove it")
