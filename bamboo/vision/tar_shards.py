"""Images in tar files, in the layout of WebDataset: `KEY.jpg` beside `KEY.cls` or `KEY.json`.

Every member is found through an index of offsets, so that images are read in any order. The index is built by reading
the headers of all files once, and kept in the user's cache until one of the files changes.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.vision.images import EXTENSIONS, Encoded, Indices, digest, file_stamps, read_bytes

TRAILER = 1024
"""Zero bytes that end a tar file."""


class Entries(NamedTuple):
    """Where the images of some tar files are: an array each, one value per image, and `classes` by label.

    `classes` are names where the labels are names in the tar files; there are none where they are numbers, or absent.
    """

    names: NDArray[np.bytes_]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: NDArray[np.str_]


@dataclass(eq=False)
class TarShards(Encoded):
    """Images in tar files; see `Entries` for the arrays."""

    files: tuple[Path, ...]
    names: NDArray[np.bytes_]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    in_chans: int
    classes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """The path of the tar file, and that of the member in it."""
        return f"{self.files[self.shards[index]]}/{os.fsdecode(self.names[index])}"

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The content of a member."""
        return read_bytes(self.files[self.shards[index]], int(self.sizes[index]), int(self.offsets[index]))

    def subset(self, indices: Indices) -> "TarShards":
        """Some of the members."""
        arrays = ("names", "shards", "offsets", "sizes", "labels")
        return replace(self, **{name: getattr(self, name)[indices] for name in arrays})

    def stamp(self) -> bytes:
        """By sizes and times of the tar files, where in them the images are, and their labels."""
        places = self.shards, self.offsets, self.sizes
        return digest(file_stamps(self.files), *places, self.labels, self.classes, self.in_chans)


def tar_shards(
    files: Sequence[Path], in_chans: int, class_names: Path | None = None, keep_incomplete: bool = False
) -> TarShards:
    """The images of tar files, in order.

    `class_names` is a file with the name of each class in a line, which may be missing, for labels that are numbers.

    Raises:
        InputError: names a file that is no tar file or is cut short, unless `keep_incomplete` asks for what is whole of
            it, or a member that is no label; also where there are no images, or labels of some images alone.
    """
    where = files[0].parent
    entries = _cached_index(files, keep_incomplete)
    if not len(entries.names):
        raise InputError(f"{where}: no images in its tar files; expected members that end in {' '.join(EXTENSIONS)}")
    classes = tuple(map(str, entries.classes))
    if not classes and class_names and class_names.is_file():
        classes = tuple(class_names.read_text(encoding="utf-8").splitlines())
        if entries.labels.max() >= len(classes):
            raise InputError(f"{class_names} names {len(classes)} classes, and a label is {entries.labels.max()}")
    arrays = {name: value for name, value in entries._asdict().items() if name != "classes"}
    return TarShards(tuple(files), **arrays, in_chans=in_chans, classes=classes)


def _cached_index(files: Sequence[Path], keep_incomplete: bool) -> Entries:
    """The index of the files, from the cache where these very files were read before."""
    path = cache_path(files, keep_incomplete)
    with suppress(Exception), np.load(path) as arrays:  # missing or damaged: read the tar files again
        return Entries(**{name: arrays[name] for name in Entries._fields})
    entries = index(files, keep_incomplete)
    with suppress(InputError), atomic_write(path) as temporary, temporary.open("wb") as file:  # unwritable: no cache
        np.savez(file, **entries._asdict())
    return entries


def cache_path(files: Sequence[Path], keep_incomplete: bool = False) -> Path:
    """Where the index of the files is kept; another place once a file has another size or time."""
    key = digest(file_stamps(path.resolve() for path in files), keep_incomplete).hex()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bamboo"
    return folder / f"tar-{key}.npz"


def index(files: Sequence[Path], keep_incomplete: bool = False) -> Entries:
    """Read the headers and labels of tar files; for what is raised see `tar_shards`."""
    names, places, labels = [], [], []
    for shard, path in enumerate(tqdm(files, "index", unit=" tar files", disable=None, leave=False)):
        for name, offset, size, label in _images(path, keep_incomplete):
            names.append(os.fsencode(name))
            places.append((shard, offset, size))
            labels.append(label)
    numbers, classes = _numbers(labels, files[0].parent)
    shards, offsets, sizes = np.array(places, np.int64).reshape(-1, 3).T
    return Entries(np.array(names, np.bytes_), shards.astype(np.int32), offsets, sizes, numbers, classes)


def _images(path: Path, keep_incomplete: bool) -> Iterator[tuple[str, int, int, str]]:
    """Name, offset, size and label, "" for none, of the images of a file."""
    size = path.stat().st_size
    images: list[tuple[str, int, int]] = []
    sample, label = "", ""
    try:
        with tarfile.open(path, "r:") as tar:
            whole = _is_whole(path, size)
            if not whole and not keep_incomplete:
                raise InputError(f"{path} is cut short: copy it again, or read what is whole with ,incomplete=keep")
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
                folder, _, base = member.name.rpartition("/")
                key, ending = f"{folder}/{base.partition('.')[0]}", Path(base).suffix.lower()
                if key != sample:
                    yield from ((*image, label) for image in images)
                    sample, images, label = key, [], ""
                if member.offset_data + member.size > size:
                    break
                if not member.isfile() or base.startswith("."):
                    continue
                if ending in EXTENSIONS:
                    images.append((member.name, member.offset_data, member.size))
                elif ending in (".cls", ".json"):
                    content = read_bytes(path, member.size, member.offset_data).tobytes()
                    label = _label(content, ending, f"{path}/{member.name}") or label
            if whole:  # else the last sample may lack its label
                yield from ((*image, label) for image in images)
    except (tarfile.TarError, OSError) as error:
        if not keep_incomplete:
            raise InputError(f"{path} is no tar file that can be read ({error}); compressed ones are not") from error


def _is_whole(path: Path, size: int) -> bool:
    return size >= TRAILER and not read_bytes(path, TRAILER, size - TRAILER).any()


def _label(content: bytes, ending: str, name: str) -> str:
    """A label, as a number or a name, of a `.cls` member or of `label` in a `.json` member."""
    try:
        text = content.decode().strip()
        if ending == ".cls":
            return text
        fields = json.loads(text)
        label = fields.get("label", "") if isinstance(fields, Mapping) else ""
        return "" if isinstance(label, list | dict) else str(label)
    except ValueError as error:
        raise InputError(f"{name} holds no label: {error}") from error


def _numbers(labels: list[str], where: Path) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Labels as numbers, -1 for none, and the names of the classes where the labels are names."""
    values, places = np.unique(np.array(labels, np.str_), return_inverse=True)
    if not len(values) or values.tolist() == [""]:
        return np.full(len(labels), -1, np.int64), np.array([], np.str_)
    if "" in values:
        raise InputError(f"{where}: {labels.count('')} of {len(labels)} images in its tar files have no label")
    try:
        return values.astype(np.int64)[places], np.array([], np.str_)
    except ValueError:
        return places.astype(np.int64), values
