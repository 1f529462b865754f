"""Learning rates that fall from layer to layer, in any encoder of transformers."""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bamboo.errors import InputError
from bamboo.optimizers import check_layer_decay

BELOW = re.compile(r"embed|wte|wpe|mask_emb|^encoder\.(LayerNorm|conv)\.")
"""What stands below the blocks, or serves all of them as DeBERTa's relative positions and their norm do."""

ABOVE = re.compile(r"pooler|norm|ln_f", re.IGNORECASE)
"""What stands above the blocks within the encoder: its last norm and its pooler."""


def layer_groups(
    model: PreTrainedModel, layer_decay: float, weight_decay: float, written_for: int = 12
) -> list[dict[str, Any]]:
    """Parameter groups of an encoder of transformers whose `lr_scale` falls from the head, 1, down to the embedding.

    Layer l of a network of `depth` blocks (0 is the embedding) gets layer_decay ** (1 + written_for (1 - l / depth)),
    the rule of `bamboo.optimizers.layer_decay_groups`. The head is all that stands above the last block: final norm,
    pooler, classifier.

    Args:
        model: an encoder under a head.
        layer_decay: factor from one layer to the layer below it, in a network of `written_for` blocks; 1 for none.
        weight_decay: of matrices; vectors and biases have none.
        written_for: number of blocks.

    Raises:
        InputError: where `layer_decay` does not lie between 0 and 1, or the blocks of the encoder cannot be told apart,
            as in ALBERT, where all are one.
    """
    check_layer_decay(layer_decay, written_for)
    depth, blocks = model.config.num_hidden_layers, "" if layer_decay == 1 else _blocks(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        number = depth + 1 if layer_decay == 1 else _layer(name, model, blocks)
        key = number, parameter.ndim > 1
        if key not in groups:
            groups[key] = {
                "layer": "embedding" if not number else f"block {number - 1}" if number <= depth else "head",
                "lr_scale": 1.0 if number > depth else layer_decay ** (1 + written_for * (1 - number / depth)),
                "weight_decay": weight_decay if parameter.ndim > 1 else 0.0,
                "params": [],
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def _blocks(model: PreTrainedModel) -> str:
    """Name, within the encoder, of its list of blocks."""
    config = model.config
    lists = [
        name
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if len(lists) != 1 or config.model_type == "albert":
        reason = "shares its blocks" if config.model_type == "albert" else "has no single list of blocks"
        raise InputError(
            f"layer_decay needs blocks of their own weights, and {config.model_type} {reason}: set it to 1"
        )
    return str(lists[0])


def _layer(name: str, model: PreTrainedModel, blocks: str) -> int:
    """Number of the layer of a parameter: 0 is the embedding, the head follows the last block."""
    head, inner = int(model.config.num_hidden_layers) + 1, name.removeprefix(f"{model.base_model_prefix}.")
    if inner == name:
        return head
    if block := re.match(rf"{re.escape(blocks)}\.(\d+)\.", inner):
        return int(block[1]) + 1
    if BELOW.search(inner):
        return 0
    if ABOVE.search(inner):
        return head
    raise InputError(f"layer_decay cannot place {name} of {model.config.model_type}: set it to 1")
