"""A step of CAME beside one of torch's AdamW and Adafactor, and what their states take, at the shapes of Base.

All take turns on one thread over the same parameters and gradients, so that other work slows each alike.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bamboo.came import CAME
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder

ROUNDS = 3
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "came": lambda params: CAME(params, lr=1e-5),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-5, foreach=True),
    "adamw_fused": lambda params: torch.optim.AdamW(params, lr=1e-5, fused=True),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-5, foreach=False),
    "adafactor_foreach": lambda params: torch.optim.Adafactor(params, lr=1e-5, foreach=True),
}


def parameters(shape: str) -> list[Tensor]:
    """Those of a vision encoder, with gradients."""
    encoder = build_encoder(find_shape(shape), Patches.of(224, 16))
    params = [param for param in encoder.parameters() if param.requires_grad]
    generator = torch.Generator().manual_seed(0)
    for param in params:
        param.grad = 1e-3 * torch.randn(param.shape, generator=generator)
    return [*params]


def seconds(optimizer: torch.optim.Optimizer) -> float:
    """Of one step."""
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of everything that an optimizer remembers."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def measured(shape: str) -> dict[str, float]:
    """Median seconds and state of every optimizer at a shape."""
    params = parameters(shape)
    optimizers = {name: build(params) for name, build in OPTIMIZERS.items()}
    for optimizer in optimizers.values():
        optimizer.step()  # the first one makes the state
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer))
    result: dict[str, float] = {}
    for name, optimizer in optimizers.items():
        result[f"{shape}_{name}_seconds"] = statistics.median(times[name])
        result[f"{shape}_{name}_state_mb"] = state_bytes(optimizer) / 1e6
    for peer in ("adamw", "adamw_fused", "adafactor", "adafactor_foreach"):
        ratios = [ours / theirs for ours, theirs in zip(times["came"], times[peer], strict=True)]
        result[f"{shape}_over_{peer}"] = statistics.median(ratios)
    result[f"{shape}_state_over_adamw"] = result[f"{shape}_came_state_mb"] / result[f"{shape}_adamw_state_mb"]
    return result


def bench_came() -> dict[str, float]:
    """Steps and states at both shapes of Base, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {**measured("bamboo-base"), **measured("vit-base")}
    finally:
        torch.set_num_threads(threads)
