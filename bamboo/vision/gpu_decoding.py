"""Training images that worker processes only read, and that are decoded, cropped and flipped on the GPU.

The crops are those of `TrainImages`, whose transforms run here on the decoded images, each under the same seed. Pixels
differ where NVIDIA's decoder rounds otherwise than libjpeg.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode

from bamboo.errors import InputError
from bamboo.vision.images import Encoded, Unreadable
from bamboo.vision.views import TrainImages, collate

try:  # deprecated since torchvision 0.29
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None

JPEG = b"\xff\xd8\xff"
"""How a JPEG begins."""


class Undecoded(NamedTuple):
    """The number and the epoch of an image, and its JPEG as bytes (N,); None for what the CPU has to read."""

    number: int
    epoch: int
    content: Tensor | None


class EncodedImages(Dataset[Undecoded]):
    """The JPEGs of training images, which `decode_views` decodes.

    Raises:
        InputError: where images do not lie encoded, or are to be augmented beyond crops and flips.
    """

    def __init__(self, images: TrainImages):
        self.images = images
        if decode_jpeg is None or not isinstance(images.source, Encoded) or images.source.in_chans > 3:
            raise InputError("decode_on_gpu needs torchvision's decode_jpeg, and grey or RGB images of encoded files")
        if images.strong:
            raise InputError("decode_on_gpu crops and flips: set it to false with augment or erase")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Undecoded:
        source, content = self.images.source, None
        assert isinstance(source, Encoded)
        try:
            encoded = source.encoded(key[0])
            content = torch.from_numpy(encoded) if encoded[:3].tobytes() == JPEG else None
        except Unreadable:
            pass
        return Undecoded(*key, content)


def collate_decoded(samples: Sequence[Any]) -> Any:
    """A batch of what is decoded; of `EncodedImages` the samples as they are."""
    return list(samples) if isinstance(samples[0], Undecoded) else collate(samples)


def decode_views(samples: Sequence[Undecoded], images: TrainImages, device: torch.device) -> dict[str, Any]:
    """The batch on `device` that `images` would give of these samples; what is no JPEG is read as there."""
    contents = [sample.content for sample in samples if sample.content is not None]
    mode = ImageReadMode.GRAY if images.source.in_chans == 1 else ImageReadMode.RGB
    try:
        decoded = iter(decode_jpeg(contents, mode, device=device) if contents else [])
        views = [
            images[sample.number, sample.epoch]
            if sample.content is None
            else images.views(next(decoded), sample.number, sample.epoch)
            for sample in samples
        ]
    except RuntimeError:  # one of them is damaged, and it does not say which
        views = [images[sample.number, sample.epoch] for sample in samples]
    return collate([view._replace(images=view.images.to(device)) for view in views])
