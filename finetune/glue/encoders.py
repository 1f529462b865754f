"""Text encoders that can be fine-tuned: this project's checkpoints, and Hugging Face folders or names."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from bamboo.errors import InputError
from bamboo.files import read_file

WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


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
    source: str | Path,
    labels: int,
    dropout: float | None = 0.1,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> TextEncoder:
    """Load an encoder with a head for `labels` classes, or for one number.

    The head of a fine-tuned classifier is kept where its classes have the same names, and put into the order asked for.

    Args:
        source: a checkpoint of this project, a Hugging Face folder, or `hf:NAME`, of which `hf:` may be left out.
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
        opened = _open(_name(source), names, dropout)
    config = opened.model.config
    if config.pad_token_id is None:  # GPT-2 finds the end of a text by it
        pad = opened.tokenizer.pad_token_id
        config.pad_token_id = config.eos_token_id if pad is None else pad
    return opened


def head_classes(source: str | Path) -> tuple[str, ...]:
    """Names of the classes of a fine-tuned model in the order of its logits; none for a pretrained encoder.

    Raises:
        InputError: where the source cannot be read.
    """
    name = _name(source)
    if Path(name).is_file():
        names = read_file(name).get("hyper_parameters", {}).get("model_config", {}).get("id2label", {})
    else:
        config = _read_config(name)
        names = config.id2label if _is_classifier(config) else {}
    return tuple(names[key] for key in sorted(names, key=int))


def _name(source: str | Path) -> str:
    name = str(source).removeprefix("hf:")
    if Path(name).suffix in WEIGHTS and not Path(name).is_file():
        raise InputError(f"{name} is missing: give the path of a checkpoint, a Hugging Face folder or hf:NAME")
    return name


def _open(name: str, classes: Sequence[str], dropout: float | None) -> TextEncoder:
    from bamboo.text.checkpoints import is_classifier, load_text, load_text_classifier

    if not Path(name).is_file():
        return _open_huggingface(name, classes, dropout)
    if is_classifier(read_file(name)):
        loaded = load_text_classifier(name)
        return _under_classes(loaded.model, loaded.tokenizer, classes, dropout)
    loaded = load_text(name)
    config = _adapted(copy.deepcopy(loaded.model.config), classes, dropout)
    model = AutoModelForSequenceClassification.from_config(config)
    new = load_matching(model, loaded.model.state_dict())
    return TextEncoder(model, loaded.tokenizer, (*loaded.notes, *_new_weights(new)), False)


def _read_config(name: str) -> PreTrainedConfig:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{name} holds no config.json: give a Hugging Face folder, hf:NAME or a checkpoint file")
    with _one_line(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _open_huggingface(name: str, classes: Sequence[str], dropout: float | None) -> TextEncoder:
    config = _read_config(name)
    fine_tuned = _is_classifier(config)
    with _one_line(name):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config if fine_tuned else _adapted(config, classes, dropout),
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise InputError(f"{name} has no fast tokenizer: a file tokenizer.json is needed")
    if fine_tuned:
        return _under_classes(model, tokenizer, classes, dropout)
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return TextEncoder(model, tokenizer, _new_weights(new), False)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _is_classifier(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _under_classes(
    fine_tuned: PreTrainedModel, tokenizer: Any, classes: Sequence[str], dropout: float | None
) -> TextEncoder:
    """A fine-tuned model for these classes: with its own last layer where their names are the same, else a new one."""
    names = [fine_tuned.config.id2label[number] for number in range(fine_tuned.config.num_labels)]
    model = AutoModelForSequenceClassification.from_config(
        _adapted(copy.deepcopy(fine_tuned.config), classes, dropout), dtype=torch.float32
    )
    last = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    weights, same = fine_tuned.state_dict(), sorted(names) == sorted(classes)
    for name in [name for name in weights if name.startswith(f"{last}.")]:
        rows = weights.pop(name)
        if same:
            weights[name] = rows[[names.index(label) for label in classes]]
    return TextEncoder(model, tokenizer, _new_weights(load_matching(model, weights)), same)


def _adapted(config: PreTrainedConfig, classes: Sequence[str], dropout: float | None) -> PreTrainedConfig:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    for name, value in config.to_dict().items():
        if dropout is not None and re.search("dropout|pdrop", name) and isinstance(value, float | int):
            setattr(config, name, dropout)
    return config


def load_matching(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> set[str]:
    """Give a model the weights that it shares with another one; returns the names of those that it does not."""
    own = model.state_dict()
    shared = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(shared, strict=False)
    return {name for name, _ in model.named_parameters()} - shared.keys()


def load_start(model: PreTrainedModel, path: str | Path) -> set[str]:
    """Start from a model that was fine-tuned on another task: all of it but a head of another size.

    Args:
        model: of the same architecture and shape.
        path: a checkpoint of a fine-tuning run, or a file of weights that a sweep kept.

    Returns:
        Names of the weights that stay as they are.

    Raises:
        InputError: where the file holds no such model.
    """
    content = read_file(path)
    weights = content.get("state_dict", content.get("model", content))
    weights = {name.removeprefix("model.") if "state_dict" in content else name: weights[name] for name in weights}
    new = load_matching(model, weights)
    base = f"{model.base_model_prefix}."
    missing = sorted(name for name in new if name.startswith(base))
    if missing:
        raise InputError(f"{path} is of another encoder: it has no {missing[0]} of the same shape")
    return new


def longest_text(config: PreTrainedConfig) -> int | None:
    """Tokens that a text may have at most; None where positions do not end."""
    from bamboo.text.encoder import longest_sequence

    # XLNet's is -1.
    return longest_sequence(config) if (getattr(config, "max_position_embeddings", None) or 0) > 0 else None


def tells_pairs_apart(config: PreTrainedConfig) -> bool:
    """Whether the encoder embeds which text of a pair a token is from."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def _new_weights(new: set[str]) -> tuple[str, ...]:
    """One line for the weights that are drawn at random."""
    modules = sorted({name.rpartition(".")[0] for name in new})
    return (f"new weights: {', '.join(modules)}",) if modules else ()


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
