"""The image data sets: digits that need no download, folders of images, and torchvision's own."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets
from torchvision.transforms import v2

from bamboo.errors import InputError
from bamboo.processes import check_everywhere, from_first_process
from bamboo.seeds import derive_seed
from bamboo.vision.folders import Sources, all_images, check_readable, folder_sources
from bamboo.vision.image_data import ImageData as ImageData
from bamboo.vision.images import Arrays, Source


class Digits(ImageData):
    """The 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey pixels, enlarged once to `image_size`.

    A fifth of each class is held out. Digits are not mirrored, and cropped less than photographs.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        in_chans: int = 1,
        crop_scale: float = 0.6,
        flip: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(image_size=image_size, in_chans=in_chans, crop_scale=crop_scale, flip=flip, **kwargs)

    def read_sources(self) -> Sources:
        """The digits, split."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        pixels = torch.from_numpy(digits.images)[:, None] * (255 / 16)
        images = F.interpolate(pixels, self.size, mode="bilinear").round().to(torch.uint8)
        split_seed = derive_seed(self.seed, "split") % 2**32
        split = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=split_seed)
        source = Arrays(_with_channels(images, self.in_chans), digits.target.astype(np.int64))
        return Sources(*(source.subset(np.sort(part)) for part in split))


class ImageFolder(ImageData):
    """A folder of images.

    With `train/` in it, training images come from there and validation images from `val/`, or else `test/`. Without,
    or without either of the latter, a part is held out. Where all images lie in two or more sub-folders, the
    sub-folder is the class; else there are no labels. Validation images may also lie in `val/` without sub-folders,
    with a file that says their classes. One process walks the folders, and the others get its lists.

    Args:
        root: the folder; `~` is expanded.
        val_fraction: share of the images that is held out where the folder has no validation images of its own.
        val_labels: text file below `root` with a line for each image of `val/`: its name, then its class, as the
            name or the number of the class folder; commas, tabs or blanks between them, what follows is not read.
        predict_root: folder of images that `predict` runs over, with or without classes; by default those to validate
            on.
        **kwargs: arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.05,
        val_labels: str | None = None,
        predict_root: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.root, self.val_fraction = Path(root).expanduser(), val_fraction
        self.val_labels = self.root / val_labels if val_labels else None
        self.predict_root = Path(predict_root).expanduser() if predict_root else None
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")

    def read_sources(self) -> Sources:
        """The files, with their classes."""
        return folder_sources(self.root, self.in_chans, self.val_fraction, self.seed, self.val_labels)

    @cached_property
    def predicted(self) -> Source:
        """The images of `predict_root`, or else those to validate on."""
        return all_images(self.predict_root, self.in_chans, self.classes) if self.predict_root else self.sources.val

    def setup(self, stage: str | None = None) -> None:
        """Find the images, and see that every process can read them."""
        self.sources = from_first_process(lambda: self.sources)
        check_everywhere(lambda: check_readable(self.sources.train))
        if stage == "predict":
            self.predicted = from_first_process(lambda: self.predicted)
            check_everywhere(lambda: check_readable(self.predicted))
        super().setup(stage)

    def predict_source(self) -> Source:
        """The images of `predict_root`, or else those to validate on."""
        return self.predicted


class TorchvisionData(ImageData):
    """A data set that torchvision can download, in the layout in which torchvision keeps it.

    Args:
        name: which of them; Imagenette is the edition whose shorter side has 320 pixels.
        root: the folder that holds it, or will; `~` is expanded.
        download: fetch it where it is missing.
        unlabelled: train on the 100,000 images of STL10 that have no labels; probes see the 5,000 that have some.
        **kwargs: arguments of `ImageData`.
    """

    def __init__(
        self,
        name: Literal["CIFAR10", "CIFAR100", "STL10", "Imagenette"],
        root: str,
        download: bool = False,
        unlabelled: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.data_set, self.root, self.download = name, Path(root).expanduser(), download
        self.unlabelled = unlabelled
        if unlabelled and name != "STL10":
            raise InputError(f"unlabelled: {name} has no images without labels, only STL10 has")

    def prepare_data(self) -> None:
        """Download, if asked to."""
        if self.download:
            self._open("train", download=True)

    @cached_property
    def labelled(self) -> Source:
        """The training images that have labels."""
        return _arrays(self._open("train"), self.in_chans) if self.unlabelled else self.sources.train

    def read_sources(self) -> Sources:
        """The images as torchvision splits them."""
        try:
            train, val = self._open("unlabelled" if self.unlabelled else "train"), self._open("val")
        except (RuntimeError, OSError) as error:
            hint = "set download to true to fetch it"
            raise InputError(f"{self.root}: {self.data_set} is not there, or is damaged: {hint}") from error
        if self.data_set == "Imagenette":
            return folder_sources(self.root / "imagenette2-320", self.in_chans)
        return Sources(_arrays(train, self.in_chans), _arrays(val, self.in_chans))

    def _open(self, split: Literal["train", "val", "unlabelled"], download: bool = False) -> Any:
        options: dict[str, Any] = {"train": split == "train"}
        if self.data_set == "STL10":
            options = {"split": {"train": "train", "val": "test", "unlabelled": "unlabeled"}[split]}
        elif self.data_set == "Imagenette":
            options = {"split": split, "size": "320px"}
        return getattr(datasets, self.data_set)(self.root, download=download, **options)


def _arrays(dataset: Any, in_chans: int) -> Arrays:
    images = torch.from_numpy(dataset.data)  # STL10's is a transposed view of 2.8 GB, which is not copied
    images = images.movedim(-1, 1) if images.shape[-1] == 3 else images  # CIFAR has channels last, STL10 first
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Arrays(_with_channels(images, in_chans), np.asarray(labels, np.int64))


def _with_channels(images: Tensor, in_chans: int) -> Tensor:
    """Grey or RGB bytes (N, C, H, W) as grey, RGB or RGB with alpha."""
    if in_chans == 1:
        return images if images.shape[1] == 1 else v2.functional.rgb_to_grayscale(images)
    colour = images.expand(-1, 3, -1, -1)
    return colour if in_chans == 3 else torch.cat([colour, torch.full_like(colour[:, :1], 255)], dim=1)
