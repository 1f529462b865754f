"""The attention of transformers' BERT and RoBERTa with other positions than learned ones.

None of their classes is copied: each self-attention gets a module, `positions`, that holds what is learned, and
transformers is told of an attention that reads it. Masks are those that it makes for PyTorch's attention.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from bamboo.text.adaptation import PAIRS_ON_GPU, WIDTH, Adaptive, DapeV2, build_adaptation
from bamboo.text.positions import IMPLEMENTATION, Fire, NoPositions, Positions, build_bias, rotate

LONGEST_WHOLE = 1024
"""Tokens of a sequence up to which all its queries attend at once; of a longer one, as many pairs at a time."""

PAIRS_ON_CPU = 1 << 17
"""Pairs of a query and a key, over a batch, whose hidden units, of DAPE V2 and FIRE, are in memory at a time.

On a GPU they are `bamboo.text.adaptation.PAIRS_ON_GPU`, for it is fastest where there are many.
"""

Model = TypeVar("Model", bound=PreTrainedModel)


class PositionsOfLayer(nn.Module):
    """What the attention of one layer makes of the places of tokens: a bias, rotations, an adaptation, or nothing.

    Args:
        positions: a kind, but for `learned`.
        adaptive: the network over scores and biases.
        heads: of attention.
        trained_length: see `bamboo.text.positions.build_bias`.
    """

    def __init__(self, positions: Positions, adaptive: Adaptive, heads: int, trained_length: int) -> None:
        super().__init__()
        self.rotary = positions == "rotary"
        self.bias = build_bias(positions, heads, trained_length)
        self.adaptation = build_adaptation(adaptive, heads, self.bias is not None)

    def forward(
        self, query: Tensor, key: Tensor, seen: Tensor | None, start: int, causal: bool, scaling: float
    ) -> Tensor:
        """What is added to the scores (1 or B, heads, queries, keys): the lowest number for keys that are not seen.

        Hidden units that each sample has for itself are those of some queries at a time, and in training are computed
        again rather than kept: all but FIRE's where a batch shares the biases, and DAPE's, which sees to it by itself.

        Args:
            query: (B, heads, queries, width), the first of which stands at place `start` among the keys.
            key: (B, heads, keys, width).
            seen: which keys a query sees (B, 1, queries, keys); by default all, or under a causal mask none ahead.
            start: place of the first query.
            causal: whether distances are i - j; else they are |i - j|.
            scaling: of the scores.
        """
        queries, keys = query.shape[2], key.shape[2]
        pairs = PAIRS_ON_CPU if query.device.type == "cpu" else PAIRS_ON_GPU
        of_each_sample = isinstance(self.adaptation, DapeV2) or (isinstance(self.bias, Fire) and seen is not None)
        rows = max(pairs // (len(query) * keys), 1) if of_each_sample else queries

        def part(query: Tensor, seen: Tensor | None, row: int) -> Tensor:
            return self.added(query, key, seen, start + row, causal, scaling)

        return _in_chunks(part, rows, query, seen)

    def added(
        self, query: Tensor, key: Tensor, seen: Tensor | None, start: int, causal: bool, scaling: float
    ) -> Tensor:
        """The same for all queries at once."""
        exact = torch.promote_types(query.dtype, torch.float32)
        places = torch.arange(key.shape[2], device=query.device, dtype=exact)
        distance = places[start : start + query.shape[2], None] - places
        seen = distance >= 0 if causal and seen is None else seen
        distance = distance.clamp(min=0) if causal else distance.abs()
        bias = None if self.bias is None else self.bias(distance, seen)
        if self.adaptation is not None:
            change = self.adaptation(query @ key.mT * scaling, bias, seen)
            bias = change if bias is None else bias + change
        assert bias is not None
        bias = bias.to(query.dtype)
        bias = bias if seen is None else torch.where(seen, bias, torch.finfo(bias.dtype).min)
        return bias if bias.ndim == 4 else bias[None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (B, heads, T, width) each, and the result as (B, T, heads, width).

    Ends in PyTorch's `scaled_dot_product_attention`, which `bamboo profile` watches: once, or above `LONGEST_WHOLE`
    once for every chunk of queries. With a cache of keys, queries are the last of them.
    """
    own: PositionsOfLayer | None = getattr(module, "positions", None)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    queries, keys = query.shape[2], key.shape[2]
    first, scale = keys - queries, query.shape[-1] ** -0.5 if scaling is None else scaling
    if own is not None and own.rotary:
        query, key = rotate(query, first), rotate(key)
    if own is None or (own.bias is None and own.adaptation is None):
        options |= {"dropout": dropout, "scaling": scaling, "is_causal": causal}
        output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return output, None

    def attend_to(query: Tensor, seen: Tensor | None, row: int) -> Tensor:
        end = first + row + query.shape[2] if causal else keys  # behind it are keys of the future alone
        seen = seen if seen is None else seen[..., :end]
        added = own(query, key[:, :, :end], seen, first + row, causal, scale)
        return F.scaled_dot_product_attention(query, key[:, :, :end], value[:, :, :end], added, dropout, scale=scale)

    rows = queries if queries * keys <= LONGEST_WHOLE**2 else max(LONGEST_WHOLE**2 // keys, 1)
    return _in_chunks(attend_to, rows, query, attention_mask).transpose(1, 2).contiguous(), None


def _in_chunks(
    function: Callable[[Tensor, Tensor | None, int], Tensor], rows: int, query: Tensor, seen: Tensor | None
) -> Tensor:
    """A function of queries, their masks and the place of the first, of `rows` queries at a time, joined again.

    Of chunks, what is in between is computed again in the backward pass.
    """
    if rows >= query.shape[2]:
        return function(query, seen, 0)
    parts = []
    for row in range(0, query.shape[2], rows):
        part = query[:, :, row : row + rows], None if seen is None else seen[:, :, row : row + rows], row
        parts.append(checkpoint(function, *part, use_reentrant=False))
    return torch.cat(parts, 2)


def positions_of(config: PreTrainedConfig) -> tuple[Positions, Adaptive]:
    """The kind of positions that a configuration names, and how they adapt; `learned` where it names none."""
    return getattr(config, "positions", "learned"), getattr(config, "adaptive", "none")


def first_position(config: PreTrainedConfig) -> int:
    """The number of the first token's position: RoBERTa counts from behind the number of its padding token."""
    return int(config.pad_token_id) + 1 if "roberta" in config.model_type else 0


def trained_length(config: PreTrainedConfig) -> int:
    """What `build_config` calls `max_positions`."""
    return int(config.max_position_embeddings) - first_position(config)


def adaptation_flops(config: PreTrainedConfig, length: int) -> int:
    """Forward FLOPs, of all blocks over one sequence, of adapting its positions: the scores once more, and the network.

    A bias is not counted: ALiBi and Kerple have no matrix products, and FIRE's are shared by a batch.
    """
    (positions, adaptive), heads = positions_of(config), config.num_attention_heads
    if adaptive == "none":
        return 0
    read, kernel = heads * (1 if positions in ("none", "rotary") else 2), 3 if adaptive == "dape_v2" else 1
    per_pair = 2 * config.hidden_size + 2 * kernel * WIDTH * (read + heads)
    return int(config.num_hidden_layers * length**2 * per_pair)


def attach_positions(model: Model) -> Model:
    """Give a model the positions that its configuration names, in place; a model of learned positions is left alone.

    The table of positions goes, and with it the longest sequence.
    """
    config: Any = model.config
    positions, adaptive = positions_of(config)
    if positions == "learned":
        return model
    base: Any = model.base_model
    base.embeddings.position_embeddings = NoPositions()
    del base.embeddings.token_type_ids  # zeros for the longest sequence of a table; without them it makes its own
    for block in base.encoder.layer:
        heads = config.num_attention_heads
        block.attention.self.positions = PositionsOfLayer(positions, adaptive, heads, trained_length(config))
    model.set_attn_implementation(IMPLEMENTATION)
    return model


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
