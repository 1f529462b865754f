"""What a SOURCE of images may be, and how it is recognised: one spelling for every command and configuration.

    FOLDER              images, by class or not, or whatever of the next line is in it
    FOLDER or FILE      tar files in WebDataset's layout; Parquet files; what `save_to_disk` of `datasets` wrote
    hf:NAME             a data set of Hugging Face's hub
    torchvision:NAME    CIFAR10, CIFAR100, STL10 or Imagenette, kept by torchvision in the folder `root=`

Options follow with commas, as in `hf:uoft-cs/cifar100,label=fine_label`: `image=` and `label=` name columns, `train=`
and `val=` splits, of which `val=` alone holds out a share of the training images, `config=` the configuration of a data
set of the hub. `incomplete=keep` asks for what is whole of tar files that are cut short.

Splits of tar and Parquet files are told by a folder or a part of the name: train, val, valid, validation, dev or test.
Test images are validated on where there are no others.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError, unknown
from bamboo.locations import parse_location
from bamboo.vision.folders import folder_splits, scan, scan_source
from bamboo.vision.hugging_face import hub_splits, parquet_splits, rows, saved_splits
from bamboo.vision.images import Source
from bamboo.vision.splits import Splits, check_readable
from bamboo.vision.tar_shards import tar_shards
from bamboo.vision.torchvision_sets import torchvision_splits

if TYPE_CHECKING:
    from datasets import Dataset

SHARDS = (".tar", ".parquet")
VALIDATION = ("validation", "val", "valid", "dev", "test")
"""What a split to validate on is called, the preferred names first."""
OPTIONS = {
    "folder": (),
    "tar": ("incomplete",),
    "parquet": ("image", "label", "train", "val"),
    "saved": ("image", "label", "train", "val"),
    "hf": ("image", "label", "train", "val", "config"),
    "torchvision": ("root",),
}
"""Of each kind of source."""

Options = Mapping[str, str]


def open_source(text: str, in_chans: int, val_labels: str | None = None) -> Splits:
    """The images of a SOURCE.

    Args:
        text: how it is spelled; `~` is expanded.
        in_chans: channels to read.
        val_labels: a file below a folder, see `ImageFolder`.

    Raises:
        InputError: where there are no images, or they are not what the spelling says.
    """
    kind, path, options = locate(text)
    if kind == "folder":
        root = Path(path).expanduser()
        splits = folder_splits(root, in_chans, root / val_labels if val_labels else None)
    elif val_labels:
        raise InputError(f"val_labels is for a folder of images, and {text} is none")
    elif kind == "torchvision":
        splits = torchvision_splits(path.partition(":")[2], Path(options.get("root", "data")).expanduser(), in_chans)
    elif kind == "tar":
        splits = _tar_splits(Path(path).expanduser(), in_chans, options)
    else:
        splits = _dataset_splits(kind, path, in_chans, options)
    _check(text, splits)
    return splits


def all_images(text: str, in_chans: int, classes: Sequence[str]) -> Source:
    """Every image of a folder, or those to validate on of another SOURCE; labels are places in `classes`, or -1."""
    kind, path, _ = locate(text)
    if kind == "folder":
        source: Source = scan_source(Path(path).expanduser(), in_chans)
        check_readable(source)
    else:
        splits = open_source(text, in_chans)
        source = splits.train if splits.val is None else splits.val
    source.labels = number_labels(source, classes)
    return source


def number_labels(source: Source, classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels of a source as places in `classes`, -1 for none: by name, or as they are where the source has no names."""
    if not source.classes and not all(name.isdecimal() for name in classes):
        return source.labels
    names = source.classes or tuple(map(str, range(source.labels.max() + 1)))
    places = {name: place for place, name in enumerate(classes)}
    return np.array([*(places.get(name, -1) for name in names), -1], np.int64)[source.labels]


def locate(text: str) -> tuple[str, str, Options]:
    """The kind of a SOURCE, a key of `OPTIONS`, its path or name, and its options; `InputError` for others."""
    path, options = parse_location(text, set(chain(*OPTIONS.values())))
    kind = _kind(path)
    if wrong := next((option for option in options if option not in OPTIONS[kind]), None):
        raise InputError(f"{text}: a source of the kind {kind!r} has no option {wrong!r}")
    return kind, path, options


def _kind(path: str) -> str:
    """By its prefix, or by what lies there: a folder if nothing else."""
    if path.startswith(("hf:", "torchvision:")):
        return path.partition(":")[0]
    root = Path(path).expanduser()
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return "saved"
    shards = _shards(root)
    # An unpacked ImageNet may still have its tar files beside its folders of images.
    if not shards or (root.is_dir() and any("/" in image for image in scan(root))):
        return "folder"
    return "tar" if shards[0].suffix == ".tar" else "parquet"


def _shards(root: Path) -> list[Path]:
    """Tar files, or else Parquet files, in a folder, or in the folders of splits in it; or the file itself."""
    if root.is_file():
        return [root] if root.suffix in SHARDS else []
    found = []
    for folder in (root, *(root / name for name in ("data", "train", *VALIDATION))):
        if folder.is_dir():  # which may hold a million images: it is read once
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if entry.name.endswith(SHARDS) and entry.name[0] != "."]
    tars = [path for path in found if path.endswith(".tar")]
    return sorted(map(Path, tars or found))


def _by_split(root: Path) -> dict[str, list[Path]]:
    """Shards by the name of the split in their path below `root`; all are to train on where none has one."""
    groups = defaultdict(list)
    for path in _shards(root):
        words = re.split(r"[^a-z]+", (path.name if path == root else path.relative_to(root).as_posix()).lower())
        groups[next((word for word in words if word in ("train", *VALIDATION)), "train")].append(path)
    return groups if "train" in groups else {"train": [path for paths in groups.values() for path in paths]}


def _tar_splits(root: Path, in_chans: int, options: Options) -> Splits:
    keep = options.get("incomplete", "refuse")
    if keep not in ("keep", "refuse"):
        raise unknown("value of incomplete", keep, ("keep", "refuse"))
    groups = _by_split(root)
    val = next((name for name in VALIDATION if name in groups), None)
    chosen = [groups["train"], *([groups[val]] if val else [])]
    return Splits(*(tar_shards(files, in_chans, root / "classes.txt", keep == "keep") for files in chosen))


def _dataset_splits(kind: str, path: str, in_chans: int, options: Options) -> Splits:
    if kind == "hf":
        parts = hub_splits(path.removeprefix("hf:"), options.get("config"))
    elif kind == "saved":
        parts = saved_splits(Path(path).expanduser())
    else:
        root = Path(path).expanduser()
        parts = parquet_splits(root, _by_split(root))
    train, val = _names(path, parts, options)
    columns = options.get("image"), options.get("label")
    return Splits(*(rows(parts[name], f"{path}, {name}", in_chans, *columns) for name in (train, val) if name))


def _names(path: str, parts: Mapping[str, "Dataset"], options: Options) -> tuple[str, str]:
    """The split to train on and the one to validate on, "" for none."""
    only = next(iter(parts)) if len(parts) == 1 else "train"
    train = options.get("train", only)
    val = options.get("val", next((name for name in VALIDATION if name in parts and name != train), ""))
    for name in (train, val):
        if name and name not in parts:
            raise InputError(f"{path} has no split {name!r}: its splits are {', '.join(parts)}")
    return train, val


def _check(text: str, splits: Splits) -> None:
    """Refuse images that cannot be read, and validation images whose labels mean something else."""
    train, val = splits
    check_readable(train)
    if val is None:
        return
    if train.classes != val.classes:
        only = ", ".join(sorted({*train.classes} ^ {*val.classes})[:3])
        raise InputError(f"{text}: its validation images must have the classes of the others; in one only: {only}")
    if train.labels.max() >= 0 > val.labels.min():
        raise InputError(f"{text}: its validation images have no labels, and the others have")
