"""What DAPE V2 costs on images: a training step of two blocks over that of plain attention, masked and whole.

All take turns, on one thread, and the least time of each counts, in seconds of this process.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer

from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import AttentionKind, block_states, build_encoder, flops_of
from tests.benchmarks.bench_kv_compression import least

SHAPES, VISIBLE, ROUNDS = ("bamboo-base", "vit-base"), {"masked": 49, "whole": 196}, 5
KINDS: tuple[AttentionKind, ...] = ("plain", "dape_v2")
IMAGES = 4


def step(encoder: VisionTransformer, tokens: torch.Tensor, keep: torch.Tensor | None) -> None:
    """Forward and backward pass of the blocks, which leaves no gradients."""
    *_, last = block_states(encoder, tokens, keep)
    last.square().mean().backward()
    encoder.zero_grad()


def compared(shape: str, kind: str) -> Iterator[tuple[str, float]]:
    """Seconds and ratios of one shape, masked or whole."""
    size, patches, visible = replace(find_shape(shape), depth=2), Patches.of(224, 16), VISIBLE[kind]
    encoders = {name: build_encoder(size, patches, attention=name).train() for name in KINDS}
    tokens = torch.randn(IMAGES, visible + 1, size.width)
    keep = torch.rand(IMAGES, 196).argsort(1)[:, :visible] if kind == "masked" else None
    seconds = least({name: partial(step, encoder, tokens, keep) for name, encoder in encoders.items()}, ROUNDS)
    for name, value in seconds.items():
        yield f"{shape}_{kind}_{name}_seconds", value
    yield f"{shape}_{kind}_ratio", seconds["dape_v2"] / seconds["plain"]
    embedding = 2 * visible * patches.values * size.width
    plain, adapted = (flops_of(encoders[name], visible) - embedding for name in KINDS)
    yield f"{shape}_{kind}_flops_ratio", adapted / plain


def bench_dape() -> dict[str, float]:
    """Seconds, and DAPE V2 over plain attention, in time and in FLOPs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    numbers = {name: value for shape in SHAPES for kind in VISIBLE for name, value in compared(shape, kind)}
    torch.set_num_threads(threads)
    return numbers


if __name__ == "__main__":
    for name, value in bench_dape().items():
        print(f"{name:<45} {value:.3f}", flush=True)
