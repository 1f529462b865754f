"""A step of masked language modelling with each kind of positions, against learned ones: time, and memory.

Blocks of `bamboo-base` on texts of 512 tokens, with a small vocabulary, so that the blocks are what is measured.
Forward, backward and AdamW on one thread, in seconds of processor time; all kinds take turns. The memory is what a
forward pass keeps for the backward one: not the hidden units of DAPE, which are computed again, but those of FIRE,
which a batch shares.
"""

import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bamboo.shapes import find_shape
from bamboo.text.encoder import build_config, build_model
from bamboo.text.masking import Masked, masked_count
from bamboo.text.mlm import guess

LENGTH, BATCH, ROUNDS, VOCABULARY = 512, 2, 3, 1024
SHAPE = replace(find_shape("bamboo-base"), depth=2)
STATIC = ("none", "rotary", "alibi", "kerple", "fire")
ADAPTED = ("none", "alibi", "kerple", "fire")
KINDS = {
    "learned": ("learned", "none"),
    **{kind: (kind, "none") for kind in STATIC},
    **{f"{kind}_{adaptive}": (kind, adaptive) for kind in ADAPTED for adaptive in ("dape", "dape_v2")},
}


def bench_positions() -> dict[str, float]:
    """Seconds of a step, MB that it keeps, and both over those of learned positions, by kind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = {name: _model(*kinds) for name, kinds in KINDS.items()}
        optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-5) for name, model in models.items()}
        masked = _masked()
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(ROUNDS + 1):
            for name, model in models.items():
                start = time.process_time()
                guess(model, masked).loss.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - start)
        result = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
        result |= {f"{name}_mb": _kept(model, masked) for name, model in models.items()}
        for name in models:
            pairs = zip(seconds[name], seconds["learned"], strict=True)
            result[f"{name}_over_learned"] = statistics.median(ours / learned for ours, learned in pairs)
            result[f"{name}_mb_over_learned"] = result[f"{name}_mb"] / result["learned_mb"]
        return result
    finally:
        torch.set_num_threads(threads)


def _model(positions: str, adaptive: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kinds = {"positions": positions, "adaptive": adaptive}
    return build_model(build_config(SHAPE, "roberta-prelayernorm", VOCABULARY, LENGTH, **kinds)).train()


def _masked() -> Masked:
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    places = torch.arange(masked_count(LENGTH, 0.15)).expand(BATCH, -1)
    return Masked(ids, places, ids.gather(1, places))


def _kept(model: PreTrainedModel, masked: Masked) -> float:
    """MB of the tensors that a forward pass keeps, weights left out."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = guess(model, masked).loss
    del loss
    return sum(sizes.values()) / 1e6
