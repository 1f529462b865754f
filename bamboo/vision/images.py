"""From a file or an array to a batch of augmented bytes: reading, random views, collation.

A training sample is a pure function of (seed, epoch, index, view). Images stay bytes until they are on the device,
where `bamboo.vision.pixels.PixelScale` standardises them.
"""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from bamboo.errors import InputError
from bamboo.sampling import NOTHING
from bamboo.seeds import derive_seed
from bamboo.vision.augment import Erase, RandAugment

try:  # deprecated since torchvision 0.29: where it is gone, Pillow reads everything, more slowly
    from torchvision.io import decode_image
except ImportError:
    decode_image = None

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels that images can be read in."""

TORCHVISION_MODES = {1: "GRAY", 3: "RGB"}
"""torchvision's mode likewise; its RGB_ALPHA reads no JPEG and makes palette images transparent, so Pillow does."""

BICUBIC = InterpolationMode.BICUBIC


class Unreadable(InputError):
    """A file that holds no image that can be decoded."""


def read_image(path: str | Path, in_chans: int = 3) -> Tensor:
    """An image file as bytes (in_chans, H, W): grey, RGB or RGB with alpha.

    Raises:
        Unreadable: where there is no image in the file, or only a part of one.
    """
    if in_chans in TORCHVISION_MODES and decode_image is not None:
        with suppress(RuntimeError, OSError):
            image: Tensor = decode_image(torch.from_numpy(np.fromfile(path, np.uint8)), TORCHVISION_MODES[in_chans])
            # Not so for animations, 16-bit images and grey WebP.
            if image.dtype == torch.uint8 and image.shape[:-2] == (in_chans,):
                return image
    return _read_with_pillow(path, in_chans)


def _read_with_pillow(path: str | Path, in_chans: int) -> Tensor:
    try:
        with Image.open(path) as file:
            picture: Image.Image = file
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
            pixels = np.array(picture.convert(MODES[in_chans]))
    except Exception as error:  # a broken file leads Pillow's decoders to exceptions of every kind
        raise Unreadable(f"{path} is missing or holds no image that can be read") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], in_chans)).permute(2, 0, 1)


class Source(ABC):
    """Images that can be read by index, each with a label (-1 for none), and the names of the labels, if any."""

    labels: NDArray[np.int64]
    in_chans: int
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The bytes (C, H, W) of an image; raises `Unreadable`."""

    @abstractmethod
    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "Source":
        """Some of the images, in the order of `indices`."""


class Files(Source):
    """Image files.

    Args:
        root: the folder that `names` are relative to.
        names: encoded paths, in one array because workers would copy a list of strings by counting references to it.
        labels: class of each image.
        in_chans: channels to read.
        classes: names of the labels.
    """

    def __init__(
        self,
        root: str | Path,
        names: NDArray[np.bytes_],
        labels: NDArray[np.int64],
        in_chans: int,
        classes: tuple[str, ...] = (),
    ):
        self.root, self.names, self.labels, self.in_chans = Path(root), names, labels, in_chans
        self.classes = classes

    def name(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))  # noqa: PTH118, several times as fast

    def read(self, index: int) -> Tensor:
        """The decoded file."""
        return read_image(self.name(index), self.in_chans)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "Files":
        """Some of the files."""
        return Files(self.root, self.names[indices], self.labels[indices], self.in_chans, self.classes)


class Arrays(Source):
    """Images in memory.

    Args:
        images: bytes (N, C, H, W).
        labels: class of each image.
    """

    def __init__(self, images: Tensor, labels: NDArray[np.int64]):
        self.images, self.labels, self.in_chans = images, labels, images.shape[1]

    def name(self, index: int) -> str:
        """The number of an image."""
        return f"image {index}"

    def read(self, index: int) -> Tensor:
        """A row of the array."""
        return self.images[index]

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "Arrays":
        """Some of the rows."""
        return Arrays(self.images[torch.as_tensor(indices)], self.labels[indices])


class Sample(NamedTuple):
    """Views (k, C, H, W) of one image, k = 0 where it could not be read, and the paths that were skipped for it."""

    images: Tensor
    label: int
    skipped: list[str]
    number: int = NOTHING


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of all views: `image` uint8 (B, C, H, W), `label` and `index` int64 (B,), `skipped` paths."""
    return {
        "image": torch.cat([sample.images for sample in samples]),
        "label": torch.tensor([s.label for s in samples for _ in s.images], dtype=torch.int64),
        "index": torch.tensor([s.number for s in samples for _ in s.images], dtype=torch.int64),
        "skipped": [path for sample in samples for path in sample.skipped],
    }


@contextmanager
def own_streams() -> Iterator[None]:
    """Leave Python's and NumPy's global random streams, from which timm's augmentations draw, as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_streams(seed: int) -> None:
    """Start the global random streams of a CPU anew: torch's, Python's and NumPy's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class TrainImages(Dataset[Sample]):
    """Random views of images: a crop resized to `size` and flipped at random, each under a seed of its own.

    An image that cannot be read is replaced by the next one that can, under the seed of the one it replaces.

    Args:
        source: the images.
        size: height and width of a view.
        crop_scale: smallest share of the image's area in a crop.
        flip: probability of a horizontal flip.
        repeat: views of an image, which is decoded once for all of them.
        seed: seed of the views.
        augment: a RandAugment policy in timm's notation, such as `rand-m9-mstd0.5-inc1`; none by default.
        erase: probability that a rectangle of a view becomes noise.
    """

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        crop_scale: float = 0.2,
        flip: float = 0.5,
        repeat: int = 1,
        seed: int = 0,
        augment: str | None = None,
        erase: float = 0.0,
    ):
        self.source, self.repeat, self.seed = source, repeat, seed
        self.strong = bool(augment or erase)  # torchvision draws from torch alone, timm from Python and NumPy too
        crop = v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), interpolation=BICUBIC, antialias=True)
        steps = [crop, v2.RandomHorizontalFlip(flip)]
        steps += [RandAugment(augment, source.in_chans)] if augment else []
        steps += [Erase(erase, source.in_chans)] if erase else []
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, epoch = (key, 0) if isinstance(key, int) else key
        image, label, skipped = self._readable(index)
        views = []
        with torch.random.fork_rng(devices=[]), own_streams() if self.strong else nullcontext():
            for view in range(self.repeat):
                seed = derive_seed(self.seed, "view", epoch, index, view)
                seed_streams(seed) if self.strong else torch.default_generator.manual_seed(seed)
                views.append(self.transform(image))
        return Sample(torch.stack(views), label, skipped, index)

    def _readable(self, index: int) -> tuple[Tensor, int, list[str]]:
        skipped: list[str] = []
        for candidate in chain(range(index, len(self)), range(index)):
            try:
                return self.source.read(candidate), int(self.source.labels[candidate]), skipped
            except Unreadable:
                skipped.append(self.source.name(candidate))
        raise InputError(f"none of {len(self)} images can be read, the first is {self.source.name(0)}")


class EvalImages(Dataset[Sample]):
    """Whole images, without chance: the centre of each, see `evaluation_view`.

    An image that has the right size already passes unchanged. One that cannot be read is left out.

    Args:
        source: the images.
        size: height and width of the result.
    """

    def __init__(self, source: Source, size: tuple[int, int]):
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        skipped = []
        if index != NOTHING:
            try:
                image = evaluation_view(self.source.read(index), self.size)
                return Sample(image[None], int(self.source.labels[index]), [], index)
            except Unreadable:
                skipped.append(self.source.name(index))
        return Sample(torch.empty(0, self.source.in_chans, *self.size, dtype=torch.uint8), -1, skipped)


def evaluation_view(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of an image (C, H, W) at `size`, as MAE's models are evaluated.

    The image is resized to cover 256/224 of the size, or just the size where that is above 224 pixels (He et al. 2022).
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    tight = 0 if size[0] / height >= size[1] / width else 1  # the side that the other one follows
    sides = [height, width]
    covered = size[tight] * 256 // 224 if size[tight] <= 224 else size[tight]
    covering = [covered * side // sides[tight] for side in sides]  # rounded down, as torchvision's Resize does
    resized = v2.functional.resize(image, covering, BICUBIC, antialias=True)
    centre: Tensor = v2.functional.center_crop(resized, list(size))
    return centre
