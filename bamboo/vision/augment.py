"""The stronger augmentations of supervised training, on bytes: RandAugment and random erasing, both timm's."""

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from bamboo.errors import InputError
from bamboo.vision.pixels import PixelScale


class RandAugment(nn.Module):
    """timm's RandAugment (Cubuk et al. 2020) of a byte image (1 or 3, H, W); draws from Python's and NumPy's streams.

    The policy `rand-m9-mstd0.5-inc1` is two operations of magnitude 9, spread by 0.5.

    Raises:
        InputError: for a policy that is no RandAugment of timm's, or other channels.
    """

    def __init__(self, policy: str, in_chans: int = 3):
        super().__init__()
        if in_chans not in (1, 3):
            raise InputError(f"augment works on 1 or 3 channels, got {in_chans}")
        mean = (PixelScale(in_chans).mean.flatten().round().int().tolist() * 3)[:3]
        options = {"img_mean": tuple(mean), "interpolation": Image.Resampling.BICUBIC}
        try:
            self.policy = rand_augment_transform(policy, options)
        except (AssertionError, ValueError, KeyError) as error:
            raise InputError(f"augment {policy!r} is no policy such as 'rand-m9-mstd0.5-inc1'") from error
        for operation in self.policy.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize

    def forward(self, image: Tensor) -> Tensor:
        """The augmented image; a grey one stays grey, because every operation treats the three channels alike."""
        picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
        pixels = torch.from_numpy(np.array(self.policy(picture))).permute(2, 0, 1)
        return pixels[: len(image)].contiguous()


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's, also for the 0 bits of its highest magnitude: all black once, they are an error in Pillow of late."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    kept: Image.Image = posterize(image, bits)
    return kept


class Erase(nn.Module):
    """timm's random erasing (Zhong et al. 2020) of a byte image (C, H, W): noise in a rectangle, pixel by pixel.

    The noise is standard normal on the scale that `PixelScale` has by default, cut off at black and white.
    """

    def __init__(self, probability: float, in_chans: int = 3):
        super().__init__()
        self.scale = PixelScale(in_chans)
        self.erasing = RandomErasing(probability, mode="pixel", device="cpu")

    def forward(self, image: Tensor) -> Tensor:
        """The image, perhaps with a rectangle of noise."""
        return self.scale.to_bytes(self.erasing(self.scale(image)))
