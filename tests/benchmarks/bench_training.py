"""A whole training step (forward, backward, AdamW) of our masked autoencoder against that of `transformers`.

Both sides have the same shape, images, noise, optimizer and thread, and take turns. Seconds are those of the processor,
on one thread, so that other work on the machine counts for little; ratios are medians over rounds of all sides.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bamboo.recipes import Recipe
from bamboo.shapes import DECODER, Patches, Shape, decoder_flops, encoder_flops, find_shape
from bamboo.vision.mae import build_mae

MASK_RATIO = 0.75
PATCHES = Patches.of(224, 16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAK_SIDE = 2048
"""Side of the square matrices whose product stands for the peak of the machine."""

VARIANTS: dict[str, dict[str, Any]] = {
    "mae": {},
    "half": {"predict_ratio": 0.5},
    "cross": {"decoder": "cross", "predict_ratio": 0.25},
}
"""He et al. 2022 exactly; half of the hidden patches predicted; a quarter of them, by cross-attention."""


class Case(NamedTuple):
    """What is measured side by side: a shape, the images in a batch, the variants of ours, the time for it."""

    shape: str
    batch: int
    variants: tuple[str, ...]
    share: float


CASES = (
    Case("vit-small", 8, ("mae", "half", "cross"), 0.4),
    Case("vit-base", 4, ("mae",), 0.3),
    Case("bamboo-base", 4, ("mae",), 0.3),
)


def bench_training(seconds: float = 90.0) -> dict[str, float]:
    """Seconds of a step, ratios to `transformers`, FLOPs, and the share of the machine's peak that our step reaches.

    Args:
        seconds: how long to measure, in all; three rounds of each case are taken even if that is longer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result: dict[str, float] = {}
    for case in CASES:
        shape = find_shape(case.shape)
        models = {"peer": build_peer(shape)}
        models |= {name: build_mae(shape, mask_ratio=MASK_RATIO, **VARIANTS[name]) for name in case.variants}
        for precision, share in (("fp32", 0.6), ("bf16", 0.4)):
            print(f"  {case.shape}, {precision}, batch {case.batch}", flush=True)
            found = measure(case, models, precision, seconds * case.share * share)
            result |= {f"{case.shape}_{precision}_{key}": value for key, value in found.items()}
    torch.set_num_threads(threads)
    for precision in DTYPES:
        result[f"peak_{precision}_gflops"] = max(result[f"{case.shape}_{precision}_peak_gflops"] for case in CASES)
    return result


def measure(case: Case, models: dict[str, nn.Module], precision: str, seconds: float) -> dict[str, float]:
    """All sides of a case in turn, and the peak of that moment, as often as fits."""
    dtype = DTYPES[precision]
    sides: dict[str, Callable[[], Any]] = {name: training_step(m, case.batch, dtype) for name, m in models.items()}
    sides["peak"] = large_product(dtype)
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 4 or time.perf_counter() < end:
        rounds.append({name: processor_seconds(run) for name, run in sides.items()})
    rounds = rounds[1:]  # the first one warms up
    flops, peak = case.batch * step_flops(find_shape(case.shape)), 2 * PEAK_SIDE**3
    result = {f"{name}_seconds": statistics.median(r[name] for r in rounds) for name in models}
    for name in case.variants:
        result[f"{name}_ratio"] = statistics.median(r["peer"] / r[name] for r in rounds)
    result["gflops"] = flops / 1e9  # of our step; `transformers` needs a few percent more
    result["gflops_per_s"] = flops / 1e9 / result["mae_seconds"]
    result["peak_gflops"] = peak / min(r["peak"] for r in rounds) / 1e9
    result["share_of_peak"] = statistics.median((flops / r["mae"]) / (peak / r["peak"]) for r in rounds)
    return {**result, "rounds": len(rounds)}


def build_peer(shape: Shape, patches: Patches = PATCHES, decoder: Shape = DECODER) -> nn.Module:
    """The same masked autoencoder by `transformers`, with fused attention."""
    config = ViTMAEConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.mlp_width,
        image_size=patches.image_size[0],
        patch_size=patches.patch_size,
        mask_ratio=MASK_RATIO,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config)


def training_step(model: nn.Module, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """One step on fixed images and noise, as the shipped recipe takes it."""
    recipe = Recipe()
    groups = param_groups_weight_decay(model.train(), recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.base_lr, betas=recipe.betas, fused=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, PATCHES.in_chans, *PATCHES.image_size, generator=generator)
    noise = torch.rand(batch, PATCHES.count, generator=generator)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(images, noise=noise).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def large_product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product of two large square matrices."""
    left, right = (torch.randn(PEAK_SIDE, PEAK_SIDE).to(dtype) for _ in range(2))
    return lambda: left @ right


def processor_seconds(run: Callable[[], Any]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def step_flops(shape: Shape) -> int:
    """FLOPs of our step on one image under exact MAE semantics: a backward pass costs twice the forward pass."""
    visible = PATCHES.visible(MASK_RATIO)
    decoder = decoder_flops(DECODER, shape, PATCHES, visible, PATCHES.count - visible)
    return 3 * (encoder_flops(shape, PATCHES, visible) + decoder)


if __name__ == "__main__":
    for key, value in bench_training().items():
        print(f"{key:40} {value:10.3f}")
