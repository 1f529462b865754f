"""A few photographs of two classes, written in every form that a SOURCE may have."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

CLASSES = ("ant", "bee")
COUNTS = {"train": 10, "val": 4}


def jpeg(seed: int) -> bytes:
    """A JPEG of 40 x 30 px, smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def examples(split: str) -> list[tuple[bytes, int]]:
    """Images and labels of a split, those of one class after those of the other."""
    first = 0 if split == "train" else 100
    return [(jpeg(first + number), 2 * number // COUNTS[split]) for number in range(COUNTS[split])]


def as_folder(root: Path) -> None:
    for split in COUNTS:
        for number, (content, label) in enumerate(examples(split)):
            path = root / split / CLASSES[label] / f"{number:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _dataset(split: str) -> datasets.Dataset:
    columns = {"img": [{"bytes": content, "path": None} for content, _ in examples(split)]}
    columns["label"] = [label for _, label in examples(split)]
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def as_parquet(root: Path) -> None:
    """As a repository of the hub has it: features in the schema, training rows in two files."""
    (root / "data").mkdir(parents=True)
    whole = _dataset("train")
    for number in range(2):
        whole.shard(2, number, contiguous=True).to_parquet(root / "data" / f"train-{number:05}-of-00002.parquet")
    _dataset("val").to_parquet(root / "data" / "validation-00000-of-00001.parquet")


def as_plain_parquet(root: Path) -> None:
    """Of another writer: bytes and names of classes, and nothing that says what they are."""
    root.mkdir(parents=True)
    for split in COUNTS:
        contents, labels = zip(*examples(split), strict=True)
        table = pyarrow.table({"image": list(contents), "label": [CLASSES[label] for label in labels]})
        parquet.write_table(table, root / f"{split}.parquet")


def as_saved(root: Path) -> None:
    datasets.DatasetDict(train=_dataset("train"), validation=_dataset("val")).save_to_disk(root)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _as_tar(root: Path, label: Callable[[int], tuple[str, bytes]], name: str = "{split}-{shard:02}.tar") -> None:
    for split in COUNTS:
        members: list[dict[str, bytes]] = [{}, {}]
        for number, (content, value) in enumerate(examples(split)):
            ending, text = label(value)
            members[2 * number // COUNTS[split]] |= {f"{number:03}.jpg": content, f"{number:03}.{ending}": text}
        for shard, content in enumerate(members):
            write_tar(root / name.format(split=split, shard=shard), content)


def as_tar(root: Path) -> None:
    """Labels are numbers, and `classes.txt` has their names."""
    _as_tar(root, lambda label: ("cls", str(label).encode()))
    (root / "classes.txt").write_text("ant\nbee\n")


def as_tar_of_names(root: Path) -> None:
    """Folders by split, and labels that are names, in JSON beside other things."""
    _as_tar(
        root, lambda label: ("json", f'{{"label": "{CLASSES[label]}", "width": 40}}'.encode()), "{split}/{shard}.tar"
    )


KINDS = {
    "parquet": as_parquet,
    "plain_parquet": as_plain_parquet,
    "saved": as_saved,
    "tar": as_tar,
    "tar_of_names": as_tar_of_names,
}
