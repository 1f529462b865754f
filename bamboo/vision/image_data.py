"""What all image data have in common: views, batches, and loaders for training, evaluation and probes."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader

from bamboo.data import SampledData
from bamboo.errors import InputError
from bamboo.sampling import EvalSampler, Loader, evenly_spread
from bamboo.vision.gpu_decoding import EncodedImages, collate_decoded, decode_views
from bamboo.vision.images import MODES, Source, class_subset
from bamboo.vision.splits import Sources, hold_out
from bamboo.vision.views import EvalImages, TrainImages

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
        decode_on_gpu: decode and crop training JPEGs on the GPU, where there is one, and not in the workers.
        validate_on_train: share of the training images that is taken from them and validated on, in place of the
            validation images: for choosing a learning rate, say, in which these should have no part.
    """

    class_map: str | None = None
    """How the classes of data that are evaluated on alone are found among a checkpoint's."""

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
        validate_on_train: float = 0.0,
        decode_on_gpu: bool = False,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.in_chans, self.repeat, self.fraction, self.shots = in_chans, repeat, fraction, shots
        self.validate_on_train, self.decode_on_gpu = validate_on_train, decode_on_gpu
        self.view_options: dict[str, Any] = {"crop_scale": crop_scale, "flip": flip, "augment": augment, "erase": erase}
        self.skipped: set[str] = set()
        self._decoding: EncodedImages | None = None
        if in_chans not in MODES:
            raise InputError(f"in_chans must be one of {', '.join(map(str, MODES))} to read images, got {in_chans}")
        if min(*self.size, batch_size, repeat) <= 0 or num_workers < 0:
            raise InputError("image_size, batch_size and repeat must be positive, num_workers must not be negative")
        if batch_size % repeat:
            raise InputError(f"batch_size {batch_size} counts views, so repeat {repeat} must divide it")
        shares = {"crop_scale": crop_scale, "flip": flip, "erase": erase, "fraction": fraction}
        for name, share in shares.items():
            if not 0 <= share <= 1 or (share == 0 and name in ("crop_scale", "fraction")):
                raise InputError(f"{name} must be a share of one, got {share}")
        if not 0 <= validate_on_train < 1:
            raise InputError(f"validate_on_train must be at least 0 and below 1, got {validate_on_train}")
        if shots is not None and (shots < 1 or fraction != 1):
            raise InputError(f"shots must be positive and instead of a fraction, got {shots} and {fraction}")

    @abstractmethod
    def read_sources(self) -> Sources:
        """Find the images; raises `InputError` where there are none."""

    @cached_property
    def sources(self) -> Sources:
        """The images, found at the first use; of those to train on, the part that is asked for."""
        sources = self.read_sources()
        train = class_subset(sources.train, self.fraction, self.shots, self.seed)
        if self.validate_on_train:
            return hold_out(train, self.validate_on_train, self.seed)
        return sources._replace(train=train)

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
        views = TrainImages(self.sources.train, self.size, repeat=self.repeat, seed=self.seed, **self.view_options)
        self._decoding = EncodedImages(views) if self.decode_on_gpu and self._on_gpu() else None
        return self.train_loader(self._decoding or views, self.batch_size // self.repeat)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole images, each of them once over all processes."""
        return self.eval_loader(EvalImages(self.sources.val, self.size))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Whole images of `predict_source`, each of them once over all processes."""
        return self.eval_loader(EvalImages(self.predict_source(), self.size))

    def probe_loaders(self, limit: int | None = None, shared: bool = False) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Whole labelled training images and validation images, in order, for a probe of the features.

        At most `limit` of each, evenly spread; `shared` deals them to the processes, where else each gets all of them.
        """
        return self.probe_loader(self.labelled, limit, shared), self.probe_loader(self.sources.val, limit, shared)

    def probe_loader(self, source: Source, limit: int | None = None, shared: bool = False) -> DataLoader[Any]:
        """Whole images of any source, as `probe_loaders` gives them."""
        places = evenly_spread(len(source), limit)
        images = EvalImages(source if len(places) == len(source) else source.subset(places), self.size)
        sampler = EvalSampler(images, self.batch_size, *self.processes) if shared else None
        return DataLoader(images, batch_size=self.batch_size, sampler=sampler, **self.loader_options())

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Images, labels and the paths of what cannot be read, batched; as they are where they are to be decoded."""
        return collate_decoded

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Decode what the workers have not, and name every image that could not be read, once."""
        if isinstance(batch, list):
            assert self._decoding is not None
            assert self.trainer is not None
            batch = decode_views(batch, self._decoding.images, self.trainer.strategy.root_device)
        for path in batch["skipped"]:
            if path not in self.skipped:
                self.skipped.add(path)
                log.warning("skipped an image that cannot be read, the %d. so far: %s", len(self.skipped), path)
        return batch
