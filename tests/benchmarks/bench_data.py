"""Images per second on one core, from JPEGs of 500 x 375 px to standardised batches: ours against the PIL recipe.

Both sides end with the same thing, a standardised float batch, and take turns. Seconds are those of the processor, on
one thread, so that other work on the machine counts for little.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from bamboo.vision.folders import folder_splits
from bamboo.vision.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelScale
from bamboo.vision.views import TrainImages, collate

BATCH = 32
"""Small enough that malloc keeps the memory of a float batch, as a device's allocator does."""

RECIPE = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)
"""What the MAE paper trains on: a crop of 0.2 to 1 of the area, resized bicubically, and a flip."""


def make_photos(folder: Path, count: int = BATCH) -> list[Path]:
    """Write crops of real photographs, half of them mirrored, as JPEGs of 500 x 375 px: quality 90, 4:2:0."""
    rng, photos = np.random.default_rng(0), [Image.fromarray(image) for image in load_sample_images().images]
    paths = []
    for number in range(count):
        left, top = rng.integers(0, 640 - 500), rng.integers(0, 427 - 375)
        photo = photos[number % 2].crop((left, top, left + 500, top + 375))
        if number % 4 > 1:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / f"{number:03}.jpg")
        photo.save(paths[-1], quality=90, subsampling="4:2:0")
    return paths


def with_pil(path: Path) -> torch.Tensor:
    """One image through the reference recipe."""
    with Image.open(path) as image:
        return RECIPE(image.convert("RGB"))


def rate(batch: Callable[[], torch.Tensor]) -> float:
    """Images per second of processor time, over one batch; one before it takes back the memory the other side freed."""
    batch()
    start = time.process_time()
    images = batch()
    return len(images) / (time.process_time() - start)


def bench_data(seconds: float = 20.0) -> dict[str, float]:
    """Median rates, and median ratios to the PIL recipe within a round, over as many rounds as fit in `seconds`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photos(Path(folder))
        source = folder_splits(Path(folder), in_chans=3).train
        scale, once, twice = PixelScale(), TrainImages(source, (224, 224)), TrainImages(source, (224, 224), repeat=2)
        sides: dict[str, Callable[[], torch.Tensor]] = {
            "pil": lambda: torch.stack([with_pil(path) for path in paths]),
            "bamboo": lambda: scale(collate([once[i] for i in range(len(once))])["image"]),
            "bamboo_repeat2": lambda: scale(collate([twice[i] for i in range(BATCH // 2)])["image"]),
        }
        rounds, end = [], time.perf_counter() + seconds
        while len(rounds) < 3 or time.perf_counter() < end:
            rounds.append({name: rate(batch) for name, batch in sides.items()})
    torch.set_num_threads(threads)
    rounds = rounds[1:]  # the first one warms up
    result = {f"{name}_images_per_s": statistics.median(r[name] for r in rounds) for name in sides}
    for name in ("bamboo", "bamboo_repeat2"):
        result[f"{name}_over_pil"] = statistics.median(r[name] / r["pil"] for r in rounds)
    return {**result, "rounds": len(rounds)}


if __name__ == "__main__":
    for key, value in bench_data().items():
        print(f"{key:28} {value:10.2f}")
