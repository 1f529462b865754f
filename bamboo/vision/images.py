"""Images that are read by index, as bytes and with labels: what all sources have in common, and the simplest two."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bamboo.errors import InputError
from bamboo.seeds import derive_seed

try:  # deprecated since torchvision 0.29: where it is gone, Pillow reads everything, more slowly
    from torchvision.io import decode_image
except ImportError:
    decode_image = None

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the files that are taken for images."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels that images can be read in."""

TORCHVISION_MODES = {1: "GRAY", 3: "RGB"}
"""torchvision's mode likewise; its RGB_ALPHA reads no JPEG and makes palette images transparent, so Pillow does."""

Indices = Sequence[int] | NDArray[np.int64]


class Unreadable(InputError):
    """An image that is not there, or cannot be decoded."""


def read_image(path: str | Path, in_chans: int = 3) -> Tensor:
    """An image file as bytes (in_chans, H, W): grey, RGB or RGB with alpha; raises `Unreadable`."""
    return decode(read_bytes(path), in_chans, str(path))


def read_bytes(path: str | Path, size: int = -1, offset: int = 0) -> NDArray[np.uint8]:
    """A file, or `size` bytes of it from `offset` on; raises `Unreadable` where it is missing or shorter."""
    try:
        content = np.fromfile(path, np.uint8, count=size, offset=offset)
    except OSError as error:
        raise Unreadable(f"{path} is missing or cannot be read") from error
    if len(content) < size:
        raise Unreadable(f"{path} ends before byte {offset + size}")
    return content


def decode(content: NDArray[np.uint8], in_chans: int, name: str) -> Tensor:
    """An encoded image, such as a JPEG, as bytes (in_chans, H, W); raises `Unreadable`, which names it by `name`."""
    if in_chans in TORCHVISION_MODES and decode_image is not None:
        with suppress(RuntimeError):
            image: Tensor = decode_image(torch.from_numpy(content), TORCHVISION_MODES[in_chans])
            # Not so for animations, 16-bit images and grey WebP.
            if image.dtype == torch.uint8 and image.shape[:-2] == (in_chans,):
                return image
    return _decode_with_pillow(content, in_chans, name)


def _decode_with_pillow(content: NDArray[np.uint8], in_chans: int, name: str) -> Tensor:
    try:
        with Image.open(BytesIO(content.tobytes())) as file:
            picture: Image.Image = file
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(picture.convert(MODES[in_chans]))
    except Exception as error:  # a broken file leads Pillow's decoders to exceptions of every kind
        raise Unreadable(f"{name} holds no image that can be read") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], in_chans)).permute(2, 0, 1)


class Source(ABC):
    """Images by index, each with a label (-1 for none), and the names of the classes, if there are any."""

    labels: NDArray[np.int64]
    in_chans: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The bytes (C, H, W) of an image; raises `Unreadable`."""

    @abstractmethod
    def subset(self, indices: Indices) -> "Source":
        """Some of the images, in the order of `indices`."""

    @abstractmethod
    def stamp(self) -> bytes:
        """Sixteen bytes that are others wherever the images or their labels may be, without reading images on disk."""


class Encoded(Source):
    """Images that lie encoded somewhere, as JPEG, PNG and the like, and are decoded when they are read."""

    @abstractmethod
    def encoded(self, index: int) -> NDArray[np.uint8]:
        """An image as it lies there; raises `Unreadable`."""

    def read(self, index: int) -> Tensor:
        """The decoded image."""
        return decode(self.encoded(index), self.in_chans, self.name(index))


@dataclass(eq=False)
class Files(Encoded):
    """Image files below a folder.

    `names` are encoded paths in one array: workers would copy a list of strings by counting references to it.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    in_chans: int
    classes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))  # noqa: PTH118, several times as fast

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The content of a file."""
        return read_bytes(self.name(index))

    def subset(self, indices: Indices) -> "Files":
        """Some of the files."""
        return replace(self, names=self.names[indices], labels=self.labels[indices])

    def stamp(self) -> bytes:
        """By paths, sizes and times of the files, and by their labels."""
        paths = [self.name(index) for index in range(len(self))]
        return digest(file_stamps(paths), self.labels, self.classes, self.in_chans)


class Arrays(Source):
    """Images in memory, bytes (N, C, H, W)."""

    def __init__(self, images: Tensor, labels: NDArray[np.int64]):
        self.images, self.labels, self.in_chans, self.classes = images, labels, images.shape[1], ()

    def name(self, index: int) -> str:
        """The number of an image."""
        return f"image {index}"

    def read(self, index: int) -> Tensor:
        """A row of the array."""
        return self.images[index]

    def subset(self, indices: Indices) -> "Arrays":
        """Some of the rows."""
        return Arrays(self.images[torch.as_tensor(indices)], self.labels[indices])

    def stamp(self) -> bytes:
        """By the images themselves."""
        return digest(np.ascontiguousarray(self.images.numpy()), self.labels, self.classes)


def digest(*parts: object) -> bytes:
    """Sixteen bytes that follow from arrays, by their content, and from other values, by how they are written."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        total.update(f"{len(content)} ".encode() + content)
    return total.digest()


def file_stamps(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """Whole path, size and time of change of each file, -1 where it is not there."""
    stamps = []
    for path in paths:
        size, changed = -1, -1
        with suppress(OSError):
            size, changed = (stat := os.stat(path)).st_size, stat.st_mtime_ns  # noqa: PTH116, several times as fast
        stamps.append((os.path.abspath(path), size, changed))  # noqa: PTH100, likewise
    return stamps


def class_subset(source: Source, fraction: float = 1.0, shots: int | None = None, seed: int = 0) -> Source:
    """A share of each class, at least one image, or `shots` images of each; a smaller draw lies in a larger one."""
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
