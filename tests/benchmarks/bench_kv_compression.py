"""What compressed keys and values save: inference and a training step at high resolution, beside the plain encoder.

Of each shape there are two blocks, for all cost alike; windows of 2 x 2 patches share a key and a value in the upper
half of them, as published, or in all. All take turns, on one thread, and the least time of each counts, in seconds of
this process, so that other work on the machine has little say.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder, encode
from bamboo.vision.kv_compression import KVCompression

SHAPES, SIDES = ("bamboo-base", "vit-base"), (448, 896)
COMPRESSIONS = {"plain": None, "half": KVCompression(2), "all": KVCompression(2, from_block=0)}
ROUNDS = {448: 6, 896: 3}


def inference(encoder: VisionTransformer, images: torch.Tensor) -> None:
    """One forward pass."""
    with torch.inference_mode():
        encode(encoder, images)


def step(encoder: VisionTransformer, images: torch.Tensor) -> None:
    """One forward and backward pass, which leaves no gradients."""
    encode(encoder, images).square().mean().backward()
    encoder.zero_grad()


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least seconds of each call; they take turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: min(each[1:]) for name, each in times.items()}


def compared(shape: str, side: int) -> Iterator[tuple[str, float]]:
    """Seconds and ratios of one shape at one size of images, one image at a time."""
    sizes, images = (replace(find_shape(shape), depth=2), Patches.of(side, 16)), torch.randn(1, 3, side, side)
    encoders = {name: build_encoder(*sizes, kv_compression=value) for name, value in COMPRESSIONS.items()}
    for work in (inference, step):
        calls = {name: partial(work, encoder, images) for name, encoder in encoders.items()}
        seconds = least(calls, ROUNDS[side])
        for name, value in seconds.items():
            yield f"{shape}_{side}_{name}_{work.__name__}_seconds", value
            yield f"{shape}_{side}_{name}_{work.__name__}_gain", seconds["plain"] / value


def bench_kv_compression() -> dict[str, float]:
    """Seconds, and plain over compressed: of inference at 896 pixels at least 1.3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    numbers = {name: value for shape in SHAPES for side in SIDES for name, value in compared(shape, side)}
    torch.set_num_threads(threads)
    return numbers


if __name__ == "__main__":
    for name, value in bench_kv_compression().items():
        print(f"{name:<45} {value:.3f}", flush=True)
