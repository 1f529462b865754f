"""Language modelling that starts from weights: a checkpoint of this project or a Hugging Face folder."""

import copy
from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bamboo.errors import InputError
from bamboo.reports import Report
from bamboo.stacking import Stack, origins, stack_blocks, what_fits
from bamboo.text.attention import positions_of
from bamboo.text.checkpoints import load_by_key
from bamboo.text.encoder import Architecture, build_model, is_causal, shape_of

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
KINDS = ("positions", "adaptive")

# By architecture, the names of the blocks in `state_dict` and, within one, of what its branches end with.
BLOCKS = {
    "roberta-prelayernorm": ("roberta_prelayernorm.encoder.layer.", ("attention.output.dense.", "output.dense.")),
    "modernbert": ("model.layers.", ("attn.Wo.", "mlp.Wo.")),
    "bert": ("bert.encoder.layer.", ()),
    "roberta": ("roberta.encoder.layer.", ()),
}


def start(
    source: str | Path, wanted: PreTrainedConfig, tokenizer: Tokenizer, stack: Stack | None = None
) -> tuple[PreTrainedConfig, dict[str, Tensor], Report]:
    """A language model to go on with: the configuration of a source, its weights, and a report.

    Vocabulary, positions, epsilon and kinds of attention are those of the source, so that its loss is kept.

    Args:
        source: anything that `bamboo.text.checkpoints.load_text` reads, of an architecture of `build_config`.
        wanted: what the options of the model say: shape and architecture must be those of the source.
        tokenizer: of the text to train on, whose vocabulary must be that of the source.
        stack: how the source's blocks make a deeper encoder, see `bamboo.stacking.origins`.

    Raises:
        InputError: where the source cannot be read, or is another model, of other positions or another vocabulary.
    """
    (model, own_tokenizer, notes), unused, fresh = load_by_key(source)
    config, state = copy.deepcopy(model.config), model.state_dict()
    kind = config.model_type
    if kind not in get_args(Architecture):
        known = ", ".join(get_args(Architecture))
        raise InputError(f"{source} is of architecture {kind}: expected one of {known}")
    if kind != wanted.model_type:
        raise InputError(f"{source} is of architecture {kind}: give --model.init_args.architecture {kind}")
    if is_causal(config) != is_causal(wanted):
        own_objective, other_objective = ("causal" if is_causal(each) else "masked" for each in (config, wanted))
        raise InputError(
            f"{source} is a {own_objective} language model, and model.init_args.objective says {other_objective}: "
            f"give --model.init_args.objective {own_objective}, or another source"
        )
    _check_vocabulary(source, own_tokenizer, tokenizer)
    if stack:
        depth = config.num_hidden_layers
        config, state = _stacked(config, state, wanted.num_hidden_layers, stack)
        notes = (*notes, f"{depth} blocks stacked to {config.num_hidden_layers} ({stack})")
    if any(getattr(config, name) != getattr(wanted, name) for name in SIZES):
        own, other = shape_of(config), shape_of(wanted)
        found, said = (f"{shape} with {shape.heads} heads" for shape in (own, other))
        raise InputError(f"{source} is {found}, and model.init_args.shape says {said}: {what_fits(own, other)}")
    if positions_of(config) != positions_of(wanted):
        own_kinds, other_kinds = positions_of(config), positions_of(wanted)
        options = " ".join(f"--model.init_args.{name} {kind}" for name, kind in zip(KINDS, own_kinds, strict=True))
        raise InputError(
            f"{source} has positions {' and adaptive '.join(own_kinds)}, and model.init_args says "
            f"{' and '.join(other_kinds)}: give {options}"
        )
    config.dtype = torch.float32
    kind_of_positions = positions_of(config)[0]
    places = config.max_position_embeddings if kind_of_positions == "learned" else kind_of_positions
    sizes = f"vocabulary of {config.vocab_size} and {places} positions, as the source has them"
    unused_keys = dict.fromkeys(unused, "no part of a language model")
    return config, state, Report(str(source), kind, len(state) - len(fresh), (*notes, sizes), unused_keys, tuple(fresh))


def _check_vocabulary(source: str | Path, own: PreTrainedTokenizerBase, tokenizer: Tokenizer) -> None:
    if own.get_vocab() != tokenizer.get_vocab():
        folder = f"FOLDER, what bamboo export {source} --format hf --out FOLDER writes" * Path(source).is_file()
        raise InputError(
            f"{source} has a vocabulary of {len(own.get_vocab())} tokens, and the data were made with another one, of "
            f"{tokenizer.get_vocab_size()}: bamboo tokenize TEXT --out CORPUS --tokenizer "
            f"{folder or str(source).removeprefix('hf:')}"
        )


def _stacked(
    config: PreTrainedConfig, state: dict[str, Tensor], deeper: int, stack: Stack
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    kind, depth = config.model_type, config.num_hidden_layers
    blocks, ends = BLOCKS[kind]
    if stack == "identity" and not ends:
        raise InputError(f"{kind} normalises behind each branch, so no block of it changes nothing: stack by repeat")
    if stack == "repeat" and kind == "modernbert":
        raise InputError("the first block of modernbert is unlike the others, it has no norm: stack by identity")
    chosen = origins(depth, deeper, stack)
    config.num_hidden_layers, stacked = deeper, stack_blocks(state, blocks, ends, deeper, stack)
    if kind == "modernbert":
        config.layer_types = [config.layer_types[origin] for origin, _ in chosen]
        for name, tensor in build_model(config).state_dict().items():
            stacked.setdefault(name, tensor)  # norms of the copies of the first block, which has none
    return config, stacked
