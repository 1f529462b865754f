"""What is seen of an image: random crops in training, its centre in evaluation, and batches of either.

A training sample is a pure function of (seed, epoch, index, view). Images stay bytes until they are on the device,
where `bamboo.vision.pixels.PixelScale` standardises them.
"""

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from bamboo.errors import InputError
from bamboo.sampling import NOTHING
from bamboo.seeds import derive_seed
from bamboo.vision.augment import Erase, RandAugment
from bamboo.vision.images import Source, Unreadable

BICUBIC = InterpolationMode.BICUBIC


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


def seed_streams(seed: int) -> None:
    """Start the global random streams of a CPU anew: torch's, and Python's and NumPy's, from which timm draws."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class TrainImages(Dataset[Sample]):
    """Random views of images: a crop resized to `size` and flipped at random, each under a seed of its own.

    An image that cannot be read is replaced by the next one that can, under the seed of the one it replaces.
    The options are those of `ImageData`; `size` is (height, width).
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
        return self.views(image, index, epoch)._replace(label=label, skipped=skipped)

    def views(self, image: Tensor, index: int, epoch: int) -> Sample:
        """The views of a decoded image, on its device, that has this index in this epoch."""
        views = []
        start = seed_streams if self.strong else torch.default_generator.manual_seed
        with isolate_rng(include_cuda=False) if self.strong else torch.random.fork_rng(devices=[]):
            for view in range(self.repeat):
                start(derive_seed(self.seed, "view", epoch, index, view))
                views.append(self.transform(image))
        return Sample(torch.stack(views), int(self.source.labels[index]), [], index)

    def _readable(self, index: int) -> tuple[Tensor, int, list[str]]:
        skipped: list[str] = []
        for candidate in chain(range(index, len(self)), range(index)):
            try:
                return self.source.read(candidate), int(self.source.labels[candidate]), skipped
            except Unreadable:
                skipped.append(self.source.name(candidate))
        raise InputError(f"none of {len(self)} images can be read, the first is {self.source.name(0)}")


class EvalImages(Dataset[Sample]):
    """Whole images at a size, without chance: see `evaluation_view`. One that cannot be read is left out."""

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
    """The centre of an image (C, H, W) at `size`, as MAE's models are evaluated; unchanged where it has that size.

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
