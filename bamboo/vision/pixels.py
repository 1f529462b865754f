"""Between images and patches: cutting, pasting back, and the scale of pixel values."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, patch_size^2 x C), row by row, channels last inside a patch."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches (B, N, patch_size^2 x C) back into images (B, C, H, W): the inverse of `patchify`."""
    batch, (rows, columns) = patches.shape[0], grid
    cut = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)


class PixelScale(nn.Module):
    """Images as bytes (0 to 255) to standardised floats, on whatever device they are, and back.

    Mean and standard deviation of each channel are given on a scale of 0 to 1. They are ImageNet's for three channels,
    else 0.5 and 0.25, if they are left out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_chans: int = 3, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        mean = mean or (IMAGENET_MEAN if in_chans == 3 else (0.5,) * in_chans)
        std = std or (IMAGENET_STD if in_chans == 3 else (0.25,) * in_chans)
        # Constants of the configuration, so kept out of the state dict, whose keys stay those of the model.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as modules do, but stay in fp32: bf16 would round a mean of 123.675 to 123.5."""
        exact = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = (tensor.to(self.mean.device) for tensor in exact)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Standardise byte images (B, C, H, W); floats are taken to be standardised already and pass unchanged."""
        # In place: on a CPU the copies would cost as much as decoding the images did.
        return images if images.is_floating_point() else images.float().sub_(self.mean).div_(self.std)

    def statistics(self) -> dict[str, list[float]]:
        """`mean` and `std` of each channel, as the constructor takes them."""
        named = {"mean": self.mean, "std": self.std}
        return {name: [round(value / 255, 6) for value in part.flatten().tolist()] for name, part in named.items()}

    def to_bytes(self, images: Tensor) -> Tensor:
        """Standardised floats (B, C, H, W) back to bytes, clipped to what a picture can show."""
        return (images.float() * self.std + self.mean).round().clamp(0, 255).to(torch.uint8)
