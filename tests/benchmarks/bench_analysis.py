"""What measuring costs beside the forward pass it looks at, and beside the naive way of measuring.

Ratios of the fastest of several interleaved runs, since what else a machine does only adds to a time. The naive way
keeps all hidden states, as `output_hidden_states` and `forward_intermediates` do, and computes every tokens x tokens
matrix of cosines.
"""

import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bamboo.analysis import profile
from bamboo.analysis.architectures import find_stack
from bamboo.analysis.captures import State, capture
from bamboo.analysis.inputs import Layout
from bamboo.analysis.measures import token_similarity
from bamboo.analysis.recording import Recorder
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder

BATCH = 2
BATCHES = 3
STEPS_BETWEEN_LOOKS = 500  # the default interval of SimilarityMonitor


def bench_analysis() -> dict[str, float]:
    """Ratios at bamboo-base (48 layers, 197 tokens): costs over a plain forward pass, gains over the naive way.

    On one thread, as the other benchmarks.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured()
    finally:
        torch.set_num_threads(threads)


def _measured() -> dict[str, float]:
    encoder = build_encoder(find_shape("bamboo-base"), Patches.of(224, 16)).eval()
    images = torch.randn(BATCH, 3, 224, 224)

    batches = [images] * BATCHES  # what a profile does once, such as looking up versions, is spread over them

    def plain() -> None:
        for batch in batches:
            encoder.forward_features(batch)

    runs: dict[str, Callable[[], Any]] = {
        "plain": plain,
        "similarity": lambda: profile(encoder, batches, ["token_similarity"]),
        "stream": lambda: profile(encoder, batches, ["stream"]),
        "default": lambda: profile(encoder, batches),
        "ranks": lambda: profile(encoder, batches, ["effective_rank", "stable_rank"]),
        "attention": lambda: profile(encoder, batches, ["attention"]),
    }
    with torch.inference_mode():
        seconds = fastest(runs, repeats=4)
        states = hidden_states(encoder, images)
        hot = states[-1:] * len(states)  # a state that is measured as it appears is still in the cache
        alone = fastest({"naive": lambda: naive(states), "streaming": lambda: streaming(hot)}, repeats=9)
        memory = {"naive": naive_memory(states), "streaming": streaming_memory(encoder, states)}
    costs = {f"cost_{name}": seconds[name] / seconds["plain"] for name in runs if name != "plain"}
    return {
        **costs,
        "gain_speed": alone["naive"] / alone["streaming"],
        "gain_memory": memory["naive"] / memory["streaming"],
        "monitor_share": monitor_share(encoder, images),
    }


def fastest(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest run of each, run in turn."""
    best = dict.fromkeys(runs, math.inf)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def hidden_states(encoder: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """All hidden states of a pass."""
    states: list[Tensor] = []
    with capture(encoder, lambda state: states.append(state.tokens)):
        encoder.forward_features(images)
    return states


def naive(states: list[Tensor]) -> list[Tensor]:
    """Mean pairwise cosine of patches, by the matrix of all cosines."""
    found = []
    for state in states:
        unit = F.normalize(state[:, 1:], dim=-1)
        cosines = unit @ unit.mT
        count = cosines.shape[-1]
        found.append((cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1)))
    return found


def streaming(states: list[Tensor]) -> list[Tensor]:
    """The same by this package."""
    return [token_similarity(state[:, 1:]) for state in states]


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at one time; those that are given do not count."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it goes."""
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        """Take back a storage that is gone."""
        self.known.discard(key)
        self.alive -= size


def naive_memory(states: list[Tensor]) -> float:
    """Bytes that the naive way holds at its peak: all states, and what a matrix of cosines needs."""
    with Peak(states) as peak:
        naive(states)
    return sum(state.nbytes for state in states) + peak.most


def streaming_memory(encoder: torch.nn.Module, states: list[Tensor]) -> float:
    """Bytes that measuring holds at its peak beside the state that the pass itself has in hand."""
    recorder = Recorder(["token_similarity"], find_stack(encoder))
    recorder.layout = Layout(start=1)
    with Peak(states) as peak:
        for layer, state in enumerate(states):
            recorder(State(layer, "stream", state))
        recorder.end_batch()
    return peak.most


def monitor_share(encoder: torch.nn.Module, images: Tensor) -> float:
    """Share of training time that looking at one step in 500 takes, against the forward pass alone (a lower bar)."""
    seen: list[Tensor] = []

    def looked_at() -> None:
        seen.clear()
        with capture(encoder, lambda s: seen.append(token_similarity(s.tokens[:, 1:]).mean())):
            encoder.forward_features(images)
        torch.stack(seen).tolist()

    seconds = fastest({"plain": lambda: encoder.forward_features(images), "looked at": looked_at}, repeats=3)
    return max(0.0, seconds["looked at"] / seconds["plain"] - 1) / STEPS_BETWEEN_LOOKS


if __name__ == "__main__":
    for name, ratio in bench_analysis().items():
        print(f"{name:<16} {ratio:.5f}" if name == "monitor_share" else f"{name:<16} {ratio:.2f}")
