"""A Hugging Face language model at a `Shape`, masked or causal, and where its parts are."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaPreLayerNormConfig,
)

from bamboo.errors import InputError, unknown
from bamboo.shapes import Shape, find_shape
from bamboo.text.adaptation import Adaptive
from bamboo.text.attention import attach_positions, first_position, positions_of, trained_length
from bamboo.text.positions import Positions

Architecture = Literal["bert", "roberta", "roberta-prelayernorm", "modernbert"]

Objective = Literal["masked", "causal"]

ENDLESS = int(1e30)
"""The longest sequence where there is none, as transformers' tokenizers write it."""


def build_config(
    shape: str | Shape | Mapping[str, Any],
    architecture: Architecture = "bert",
    vocab_size: int = 30522,
    max_positions: int = 512,
    dropout: float = 0.0,
    pad_token_id: int = 0,
    positions: Positions = "learned",
    adaptive: Adaptive = "none",
    objective: Objective = "masked",
) -> PreTrainedConfig:
    """The configuration of a Hugging Face encoder at a shape.

    `bert` and `roberta` normalise after each branch (Devlin et al. 2019, Liu et al. 2019), `roberta-prelayernorm`
    before it, at the same matrices and nearly the same parameters. `modernbert` (Warner et al. 2024) normalises before,
    has rotary positions and no biases; its gated MLP is two thirds as wide, so that its matrices have as many weights,
    and every layer attends to all tokens, so that its cost is that of the others. The numbers of special tokens other
    than [PAD] are left open.

    Args:
        shape: name, numbers, or a `Shape`.
        architecture: how a block is built.
        vocab_size: tokens of the tokenizer; the model's vocabulary is padded to a multiple of 64.
        max_positions: the longest sequence. Where positions are not learned there is none, and it is the length that
            the model is trained at, from which FIRE's threshold starts.
        dropout: probability in embeddings, branches and attention.
        pad_token_id: number of [PAD], behind which RoBERTa's positions start.
        positions: how attention knows the places of tokens: a table that is `learned`, not at all (`none`), rotations
            of queries and keys (`rotary`), or a bias over distances (`alibi`, `kerple`, `fire`).
        adaptive: a network over the heads that adapts the positions to the data, `dape` or `dape_v2`.
        objective: what the model is trained to do: guess hidden tokens from all others, or, `causal`, each token from
            those before it, by a causal mask in the same blocks.

    Raises:
        InputError: for an unknown architecture, positions or objective, or numbers that cannot be.
    """
    if isinstance(positions, int):  # of a checkpoint from when max_positions was called so
        positions, max_positions = "learned", positions
    shape = find_shape(shape)
    if min(vocab_size, max_positions) < 1 or not 0 <= dropout < 1:
        numbers = f"{vocab_size}, {max_positions} and {dropout}"
        raise InputError(f"vocab_size and max_positions must be positive, dropout a share of one, got {numbers}")
    _check_positions(positions, adaptive, architecture, shape)
    if objective not in get_args(Objective):
        raise unknown("objective", str(objective), get_args(Objective))
    causal = objective == "causal"
    common: dict[str, Any] = {
        "vocab_size": -(-vocab_size // 64) * 64,  # matrix products are faster where every side is a multiple of 64
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp_width,
        "max_position_embeddings": max_positions,
        "pad_token_id": pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if causal:
        common |= {"is_decoder": True}
    if positions != "learned":
        common |= {"positions": positions, "adaptive": adaptive}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if architecture == "bert":
        return BertConfig(**common, **dropouts, architectures=["BertLMHeadModel" if causal else "BertForMaskedLM"])
    if architecture in ("roberta", "roberta-prelayernorm"):
        common |= {"max_position_embeddings": max_positions + pad_token_id + 1, "layer_norm_eps": 1e-12}
        head = "ForCausalLM" if causal else "ForMaskedLM"
        if architecture == "roberta":
            return RobertaConfig(**common, **dropouts, type_vocab_size=2, architectures=[f"Roberta{head}"])
        names = [f"RobertaPreLayerNorm{head}"]
        return RobertaPreLayerNormConfig(**common, **dropouts, type_vocab_size=2, architectures=names)
    if architecture == "modernbert":
        if causal:
            raise InputError("modernbert reads in both directions: give another architecture for objective causal")
        return ModernBertConfig(
            **common | {"intermediate_size": round(shape.mlp_width * 2 / 3)},
            cls_token_id=None,
            sep_token_id=None,
            layer_types=["full_attention"] * shape.depth,
            attention_dropout=dropout,
            embedding_dropout=dropout,
            mlp_dropout=dropout,
            architectures=["ModernBertForMaskedLM"],
        )
    raise unknown("architecture", architecture, get_args(Architecture))


def config_of(arguments: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that the hyperparameters of a checkpoint describe, among other arguments of its module."""
    if arguments.get("config"):
        config: PreTrainedConfig = AutoConfig.for_model(**arguments["config"])
        return config
    return build_config(**{key: arguments[key] for key in signature(build_config).parameters if key in arguments})


def _check_positions(positions: Positions, adaptive: Adaptive, architecture: Architecture, shape: Shape) -> None:
    if positions not in get_args(Positions):
        raise unknown("positions", str(positions), get_args(Positions))
    if adaptive not in get_args(Adaptive):
        raise unknown("adaptive", str(adaptive), get_args(Adaptive))
    if positions == "learned" and adaptive != "none":
        others = ", ".join(kind for kind in get_args(Positions) if kind != "learned")
        raise InputError(f"adaptive {adaptive} has no use for learned positions: set positions to one of {others}")
    if positions != "learned" and architecture == "modernbert":
        raise InputError(f"modernbert has rotary positions by itself: leave out positions {positions}")
    if positions == "rotary" and shape.head_dim % 2:
        raise InputError(f"rotary positions turn pairs of features, and a head of {shape} has {shape.head_dim}")


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A language model with fresh weights, masked or causal."""
    kind = AutoModelForCausalLM if is_causal(config) else AutoModelForMaskedLM
    return attach_positions(kind.from_config(config))


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a token attends to those before it alone."""
    return bool(getattr(config, "is_decoder", False))


def kinds_of(config: PreTrainedConfig) -> dict[str, str]:
    """The arguments of `build_config` that say what weights are of where their names and sizes do not."""
    positions, adaptive = positions_of(config)
    return {"objective": "causal" if is_causal(config) else "masked", "positions": positions, "adaptive": adaptive}


def shape_of(config: PreTrainedConfig) -> Shape:
    """The shape at which `build_config` gives a configuration its sizes."""
    gated = config.model_type == "modernbert"
    mlp_width = round(config.intermediate_size * (1.5 if gated else 1.0))
    return Shape.of(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, mlp_width)


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Give every dropout of a configuration this probability."""
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float | int):
            setattr(config, name, dropout)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of blocks."""
    base: Any = model.base_model
    blocks: nn.ModuleList = base.layers if hasattr(base, "layers") else base.encoder.layer
    return blocks


def prediction_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The part of a language model that makes logits (..., vocabulary) of hidden states (..., width)."""
    parts: Any = model
    if parts.config.model_type == "modernbert":
        return lambda hidden: parts.decoder(parts.head(hidden))
    head: Callable[[Tensor], Tensor] = parts.cls if hasattr(parts, "cls") else parts.lm_head
    return head


def longest_sequence(config: PreTrainedConfig) -> int:
    """How many tokens a sequence may have."""
    return trained_length(config) if positions_of(config)[0] == "learned" else ENDLESS


def hidden_states(model: PreTrainedModel, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Hidden states (B, T, width) behind the last block of unpadded sequences.

    Args:
        model: a model that `build_model` made.
        input_ids: token numbers (B, T), none of them padding.
        documents: number of each token's document (B, T), never falling along a sequence: attention then stays within
            a document, and positions start anew in each, as if each were a sequence of its own.

    A causal model attends to what is before a token in either case.
    """
    base, length = model.base_model, input_ids.shape[1]
    positions = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    attention = None
    if documents is not None:
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        positions = positions - positions.where(starts, 0).cummax(1).values
        attention = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
        attention = attention.tril() if is_causal(model.config) else attention
    positions = positions + first_position(model.config)
    options = {"use_cache": False} if is_causal(model.config) else {}
    hidden: Tensor = base(input_ids, attention_mask=attention, position_ids=positions, **options).last_hidden_state
    return hidden
