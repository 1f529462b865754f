"""The image data modules: digits that need no download, folders of images, and torchvision's own data sets."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from bamboo.data import SampledData, check_everywhere, from_first_process
from bamboo.errors import InputError
from bamboo.sampling import EvalSampler, Loader
from bamboo.seeds import derive_seed
from bamboo.vision.folders import Sources, all_images, check_readable, folder_sources
from bamboo.vision.images import MODES, Arrays, EvalImages, Source, TrainImages, collate
from bamboo.vision.subsets import few

log = logging.getLogger(__name__)


class ImageData(SampledData):
    """What all image data share; a batch is `{"image": uint8 (B, C, H, W), "label": int64 (B,), "skipped": paths}`.

    Args:
        image_size: height and width in pixels; one number for a square.
        in_chans: channels to read: 1 is grey, 3 is RGB, 4 is RGB with alpha.
        batch_size: training views, and validation images, per process and step.
        num_workers: processes that read images, per training process.
        repeat: views of an image, which is decoded once for all of them; must divide `batch_size`.
        crop_scale: smallest share of an image's area in a training view.
        flip: probability that a training view is mirrored.
        seed: seed of the order, the views, the split and the subset.
        augment: a RandAugment policy of timm's for training views, such as `rand-m9-mstd0.5-inc1`.
        erase: probability that a rectangle of a training view becomes noise.
        fraction: share of each class to train on.
        shots: images of each class to train on, instead of a fraction.

    Raises:
        InputError: where one of these cannot be.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        batch_size: int = 64,
        num_workers: int = 0,
        repeat: int = 1,
        crop_scale: float = 0.2,
        flip: float = 0.5,
        seed: int = 0,
        augment: str | None = None,
        erase: float = 0.0,
        fraction: float = 1.0,
        shots: int | None = None,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.in_chans, self.repeat, self.crop_scale, self.flip = in_chans, repeat, crop_scale, flip
        self.augment, self.erase, self.fraction, self.shots = augment, erase, fraction, shots
        self.skipped: set[str] = set()
        if in_chans not in MODES:
            raise InputError(f"in_chans must be one of {', '.join(map(str, MODES))} to read images, got {in_chans}")
        if min(*self.size, batch_size, repeat) <= 0 or num_workers < 0:
            raise InputError("image_size, batch_size and repeat must be positive, num_workers must not be negative")
        if batch_size % repeat:
            raise InputError(f"batch_size {batch_size} counts views, so repeat {repeat} must divide it")
        if not (0 < crop_scale <= 1 and 0 <= flip <= 1):
            raise InputError(f"crop_scale and flip must be shares of one, got {crop_scale} and {flip}")
        if not (0 <= erase <= 1 and 0 < fraction <= 1) or (shots is not None and (shots < 1 or fraction != 1)):
            raise InputError(
                f"erase and fraction must be shares of one, shots positive and instead of a fraction, got {erase}, "
                f"{fraction} and {shots}"
            )

    @abstractmethod
    def read_sources(self) -> Sources:
        """Find the images; raises `InputError` where there are none."""

    @cached_property
    def sources(self) -> Sources:
        """The images, found at the first use; of those to train on, the part that is asked for."""
        found = self.read_sources()
        return found._replace(train=few(found.train, self.fraction, self.shots, self.seed))

    @property
    def labelled(self) -> Source:
        """The training images that have labels, if any: those to train on, unless a data set has others."""
        return self.sources.train

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where the images have no labels."""
        return int(self.labelled.labels.max()) + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: those of the folders, else numbers."""
        return self.labelled.classes or tuple(map(str, range(self.num_classes)))

    def predict_source(self) -> Source:
        """The images that `predict` runs over: those to validate on."""
        return self.sources.val

    def setup(self, stage: str | None = None) -> None:
        """Find the images, so that bad input shows before anything starts."""
        _ = self.sources
        super().setup(stage)

    def train_dataloader(self) -> Loader:
        """Shuffled random views of this process's share of the images."""
        how = (self.crop_scale, self.flip, self.repeat, self.seed, self.augment, self.erase)
        images = TrainImages(self.sources.train, self.size, *how)
        return self.train_loader(images, self.batch_size // self.repeat)

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole images, each of them once over all processes."""
        return self.eval_loader(EvalImages(self.sources.val, self.size))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Whole images of `predict_source`, each of them once over all processes."""
        return self.eval_loader(EvalImages(self.predict_source(), self.size))

    def probe_loaders(self, limit: int | None = None, shared: bool = False) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Whole labelled training images and validation images, in order, for a probe of the features.

        Args:
            limit: read at most so many of each, evenly spread.
            shared: deal them to the processes, in place of all of them to every process.
        """
        return self.probe_loader(self.labelled, limit, shared), self.probe_loader(self.sources.val, limit, shared)

    def probe_loader(self, source: Source, limit: int | None = None, shared: bool = False) -> DataLoader[Any]:
        """Whole images of any source, as `probe_loaders` gives them."""
        images = EvalImages(_spread(source, limit), self.size)
        sampler = EvalSampler(images, self.batch_size, *self.processes) if shared else None
        return DataLoader(images, batch_size=self.batch_size, sampler=sampler, **self.loader_options())

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Images, labels and the paths of what cannot be read, batched."""
        return collate

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Name every image that could not be read, once."""
        for path in batch["skipped"]:
            if path not in self.skipped:
                self.skipped.add(path)
                log.warning("skipped an image that cannot be read, the %d. so far: %s", len(self.skipped), path)
        return batch


class Digits(ImageData):
    """The 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey pixels, enlarged once to `image_size`.

    A fifth of each class is held out. Digits are not mirrored, and cropped less than photographs.

    Args:
        image_size: height and width in pixels; one number for a square.
        in_chans: channels, all alike.
        crop_scale: smallest share of an image's area in a training view.
        flip: probability that a training view is mirrored.
        **kwargs: arguments of `ImageData`.
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
    with a file that says their classes.

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

    def setup(self, stage: str | None = None) -> None:
        """Find the images: one process walks the folder and the others get its list, and all can read from it."""
        self.sources = from_first_process(lambda: self.sources)
        check_everywhere(lambda: check_readable(self.sources.train, self.root))
        super().setup(stage)

    def predict_source(self) -> Source:
        """The images of `predict_root`, or else those to validate on."""
        if self.predict_root is None:
            return self.sources.val
        return all_images(self.predict_root, self.in_chans, self.classes)


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


def _spread(source: Source, limit: int | None) -> Source:
    if limit is None or limit >= len(source):
        return source
    return source.subset(np.arange(limit) * len(source) // limit)


def _arrays(dataset: Any, in_chans: int) -> Arrays:
    images = torch.from_numpy(dataset.data)  # STL10's is a transposed view of 2.8 GB, which is not copied
    images = images.movedim(-1, 1) if images.shape[-1] == 3 else images  # CIFAR has channels last, STL10 first
    labels: Sequence[int] = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Arrays(_with_channels(images, in_chans), np.asarray(labels, np.int64))


def _with_channels(images: Tensor, in_chans: int) -> Tensor:
    """Grey or RGB bytes (N, C, H, W) as grey, RGB or RGB with alpha."""
    if in_chans == 1:
        return images if images.shape[1] == 1 else v2.functional.rgb_to_grayscale(images)
    colour = images.expand(-1, 3, -1, -1)
    return colour if in_chans == 3 else torch.cat([colour, torch.full_like(colour[:, :1], 255)], dim=1)
