"""Text encoders that can be fine-tuned: this project's checkpoints, and Hugging Face folders or names."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from bamboo.checkpoints import find_source
from bamboo.checkpoints.sources import Source
from bamboo.errors import InputError, loading
from bamboo.text.attention import attach_positions
from bamboo.text.checkpoints import is_classifier, load_text, load_text_classifier
from bamboo.text.encoder import ENDLESS, Architecture, is_causal, longest_sequence


class TextEncoder(NamedTuple):
    """An encoder under a head.

    Args:
        model: a model of transformers that gives logits (B, labels).
        tokenizer: its fast tokenizer.
        notes: what was taken for granted in loading it, and which weights are new.
        has_head: whether the head is that of the source, whose classes have the names asked for.
    """

    model: PreTrainedModel
    tokenizer: Any
    notes: tuple[str, ...]
    has_head: bool


def open_encoder(
    source: str | Path, labels: int, dropout: float | None = 0.1, seed: int = 0, classes: Sequence[str] = ()
) -> TextEncoder:
    """Load an encoder with a head for `labels` classes, or for one number.

    The head of a fine-tuned classifier is kept but for its last layer; that too where its classes have the same names,
    put into the order asked for.

    Args:
        source: a checkpoint of this project, a Hugging Face folder, or `hf:NAME`.
        labels: outputs of the head.
        dropout: every dropout probability that the encoder has; None leaves them as they were in pretraining.
        seed: of weights that the source does not have.
        classes: names of the outputs; `LABEL_0` and so on, as transformers has it, if they are left out.

    Raises:
        InputError: where there is no such encoder, in one line.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(f"dropout must be a share of one, got {dropout}")
    names = tuple(classes) or tuple(f"LABEL_{number}" for number in range(labels))
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        pretrained, tokenizer, notes, weights = _load(find_source(source))
        config = _adapted(pretrained.config, names, dropout)
        if is_causal(config) and config.model_type in get_args(Architecture):
            raise InputError(
                f"{source} is causal: the head of a classifier would read [CLS], which has read nothing else"
            )
        if config.pad_token_id is None:  # GPT-2 finds the end of a text by it
            config.pad_token_id = config.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model = attach_positions(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))
    has_head = _arrange_last_layer(weights, model, pretrained.config, names)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    shared = {name: value for name, value in weights.items() if shapes.get(name) == value.shape}
    model.load_state_dict(shared, strict=False)
    new = sorted({name.rpartition(".")[0] for name, _ in model.named_parameters() if name not in shared})
    return TextEncoder(model, tokenizer, (*notes, *([f"new weights: {', '.join(new)}"] if new else ())), has_head)


def _arrange_last_layer(
    weights: dict[str, torch.Tensor], model: PreTrainedModel, config: PreTrainedConfig, classes: Sequence[str]
) -> bool:
    """Put the rows of a fine-tuned last layer into the order of `classes`, or drop it where its names are others.

    Returns:
        Whether there is such a layer for these classes.
    """
    last = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    if f"{last}.weight" not in weights:
        return False
    names = [config.id2label[number] for number in range(config.num_labels)]
    same = sorted(names) == sorted(classes)
    for name in (f"{last}.weight", f"{last}.bias"):
        rows = weights.pop(name, None)
        if same and rows is not None:
            weights[name] = rows[[names.index(label) for label in classes]]
    return same


def head_classes(source: str | Path) -> tuple[str, ...]:
    """Names of the classes of a fine-tuned model in the order of its logits; none for a pretrained encoder.

    Raises:
        InputError: where the source cannot be read.
    """
    origin = find_source(source)
    if origin.kind == "text":
        names = origin.content["hyper_parameters"].get("model_config", {}).get("id2label", {})
    else:
        config = _read_config(origin)
        names = config.id2label if _is_classifier(config) else {}
    return tuple(names[key] for key in sorted(names, key=int))


def _load(source: Source) -> tuple[PreTrainedModel, Any, tuple[str, ...], dict[str, torch.Tensor]]:
    """A model, its tokenizer, notes, and those of its weights that are not drawn at random."""
    if source.kind == "text":
        loaded = (load_text_classifier if is_classifier(source.content) else load_text)(source.name)
        return loaded.model, loaded.tokenizer, loaded.notes, loaded.model.state_dict()
    config = _read_config(source)
    with loading(source.text):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.name, config=config, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"{source.text} has no fast tokenizer: a file tokenizer.json is needed")
    weights = {name: value for name, value in model.state_dict().items() if name not in info["missing_keys"]}
    return model, tokenizer, (), weights


def _read_config(source: Source) -> PreTrainedConfig:
    if source.kind not in ("transformers", "vit"):
        raise InputError(
            f"{source.text} is no text encoder: give a checkpoint of one, a Hugging Face folder or hf:NAME"
        )
    with loading(source.text):
        return AutoConfig.from_pretrained(source.name, trust_remote_code=False)


def _is_classifier(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _adapted(config: PreTrainedConfig, classes: Sequence[str], dropout: float | None) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    for name, value in config.to_dict().items():
        if dropout is not None and re.search("dropout|pdrop", name) and isinstance(value, float | int):
            setattr(config, name, dropout)
    return config


def longest_text(config: PreTrainedConfig) -> int | None:
    """Tokens that a text may have at most; None where positions do not end."""
    # XLNet's is -1.
    limit = longest_sequence(config) if (getattr(config, "max_position_embeddings", None) or 0) > 0 else ENDLESS
    return None if limit == ENDLESS else limit


def tells_pairs_apart(config: PreTrainedConfig) -> bool:
    """Whether the encoder embeds which text of a pair a token is from."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables of weights: the notes of `TextEncoder` say what matters."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
