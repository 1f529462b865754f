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
    pooler, classifier. Weight decay acts on matrices alone.

    Args:
        model: an encoder under a head.
        layer_decay: factor from one layer to the layer below it, in a network of `written_for` blocks; 1 for none.
        weight_decay: of matrices.
        written_for: number of blocks.

    Raises:
        InputError: where `layer_decay` does not lie between 0 and 1, or the blocks of the encoder cannot be told apart,
            as in ALBERT, where all are one.
    """
    check_layer_decay(layer_decay, written_for)
    depth, blocks = model.config.num_hidden_layers, "" if layer_decay == 1 else _blocks(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer, is_matrix = depth + 1 if layer_decay == 1 else _layer(name, model, blocks), parameter.ndim > 1
        group: dict[str, Any] = {
            "layer": "embedding" if not layer else f"block {layer - 1}" if layer <= depth else "head",
            "lr_scale": 1.0 if layer > depth else layer_decay ** (1 + written_for * (1 - layer / depth)),
            "weight_decay": weight_decay if is_matrix else 0.0,
            "params": [],
        }
        groups.setdefault((layer, is_matrix), group)["params"].append(parameter)
    return list(groups.values())


def _blocks(model: PreTrainedModel) -> str:
    """Name, within the encoder, of its list of blocks."""
    kind, depth = model.config.model_type, model.config.num_hidden_layers
    modules = model.base_model.named_modules()
    lists = [name for name, module in modules if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(lists) != 1 or kind == "albert":
        reason = "shares its blocks" if kind == "albert" else "has no single list of blocks"
        raise InputError(f"layer_decay needs blocks of their own weights, and {kind} {reason}: set it to 1")
    return str(lists[0])


def _layer(name: str, model: PreTrainedModel, blocks: str) -> int:
    """Number of the layer of a parameter: 0 is the embedding, the head follows the last block."""
    head, inner = int(model.config.num_hidden_layers) + 1, name.removeprefix(f"{model.base_model_prefix}.")
    if block := re.match(rf"{re.escape(blocks)}\.(\d+)\.", inner):
        return int(block[1]) + 1
    if inner != name and BELOW.search(inner):
        return 0
    if inner == name or ABOVE.search(inner):
        return head
    raise InputError(f"layer_decay cannot place {name} of {model.config.model_type}: set it to 1")
