"""What is trained on and what is validated on, and what is held out where a source does not say."""

from typing import NamedTuple

import numpy as np
import torch

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.vision.images import Source, Unreadable


class Sources(NamedTuple):
    """The images to train on and those to validate on."""

    train: Source
    val: Source


class Splits(NamedTuple):
    """The images to train on, and those to validate on where there are some apart."""

    train: Source
    val: Source | None = None

    def sources(self, val_fraction: float, seed: int) -> Sources:
        """Both; without images to validate on a share of the others is held out."""
        return hold_out(self.train, val_fraction, seed) if self.val is None else Sources(self.train, self.val)


def hold_out(source: Source, fraction: float, seed: int) -> Sources:
    """A share of the images, drawn by the seed, to validate on, and the others to train on; at least one of each."""
    if len(source) < 2:
        raise InputError(f"{source.name(0)}: expected at least two images, one to train on and one to validate on")
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(len(source), generator=generator).numpy()
    count = min(max(1, round(fraction * len(source))), len(source) - 1)
    return Sources(source.subset(np.sort(order[count:])), source.subset(np.sort(order[:count])))


def check_readable(source: Source) -> None:
    """Raise `InputError` where none of the images can be read."""
    for index in range(len(source)):
        try:
            source.read(index)
            return
        except Unreadable:
            continue
    raise InputError(f"none of {len(source)} images can be read, the first is {source.name(0)}")
