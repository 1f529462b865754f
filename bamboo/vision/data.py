"""The image data sets: digits that need no download, any SOURCE of images, and torchvision's own."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bamboo.errors import InputError
from bamboo.processes import check_everywhere, from_first_process
from bamboo.seeds import derive_seed
from bamboo.vision.image_data import ImageData as ImageData
from bamboo.vision.images import Arrays, Source
from bamboo.vision.sources import all_images, open_source
from bamboo.vision.splits import Sources, check_readable
from bamboo.vision.torchvision_sets import (
    Name,
    Part,
    labelled_images,
    open_torchvision,
    torchvision_splits,
    with_channels,
)


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
        source = Arrays(with_channels(images, self.in_chans), digits.target.astype(np.int64))
        return Sources(*(source.subset(np.sort(part)) for part in split))


class ImageFolder(ImageData):
    """Images of any SOURCE: a folder, tar or Parquet files, a Hugging Face data set; see `bamboo.vision.sources`.

    Of a folder with `train/` in it, training images come from there and validation images from `val/`, or else
    `test/`. Without, or without either of the latter, a part is held out. Where all images lie in two or more
    sub-folders, the sub-folder is the class; else there are no labels. Validation images may also lie in `val/` without
    sub-folders, with a file that says their classes. One process finds the images, and the others get its lists.

    Args:
        root: the SOURCE.
        val_fraction: share of the images that is held out where the source has no validation images of its own.
        val_labels: text file below the folder with a line for each image of `val/`: its name, then its class, as the
            name or the number of the class folder; commas, tabs or blanks between them, what follows is not read.
        class_map: how the classes of another data set, to validate or predict on alone, are found among a checkpoint's:
            `name` or `number`, which they may be called by, or a text file of both names; see
            `bamboo.finetune.classes.mapped_classes`. Only these classes compete then. All images of a source without
            validation images of its own are evaluated on.
        predict_root: SOURCE of images that `predict` runs over, with or without classes; by default those to validate
            on.
        **kwargs: arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.05,
        val_labels: str | None = None,
        class_map: str | None = None,
        predict_root: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.class_map = class_map
        if class_map and predict_root:
            raise InputError("class_map says what the classes of root are: give the images to predict as root")
        self.root, self.val_fraction, self.val_labels, self.predict_root = root, val_fraction, val_labels, predict_root
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")

    def read_sources(self) -> Sources:
        """The images, with their classes."""
        splits = open_source(self.root, self.in_chans, self.val_labels)
        if self.class_map:
            whole = splits.train if splits.val is None else splits.val
            return Sources(whole, whole)
        return splits.sources(self.val_fraction, self.seed)

    @cached_property
    def predicted(self) -> Source:
        """The images of `predict_root`, or else those to validate on."""
        return all_images(self.predict_root, self.in_chans, self.classes) if self.predict_root else self.sources.val

    def setup(self, stage: str | None = None) -> None:
        """Find the images, and see that every process can read them."""
        if self.class_map and stage == "fit":
            raise InputError("class_map is for data to validate or predict on: leave it out to train")
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
        name: Name,
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
            open_torchvision(self.data_set, self.root, "train", download=True)

    @cached_property
    def labelled(self) -> Source:
        """The training images that have labels."""
        return labelled_images(self.data_set, self.root, self.in_chans) if self.unlabelled else self.sources.train

    def read_sources(self) -> Sources:
        """The images as torchvision splits them."""
        train: Part = "unlabelled" if self.unlabelled else "train"
        splits = torchvision_splits(self.data_set, self.root, self.in_chans, train)
        return splits.sources(0.05, self.seed)


def image_data(source: str, **kwargs: Any) -> ImageData:
    """The data module of what a command names: `digits`, or a SOURCE."""
    return Digits(**kwargs) if source == "digits" else ImageFolder(source, **kwargs)
