"""Text encoders that can be fine-tuned: this project's checkpoints, and Hugging Face folders or names."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from bamboo.errors import InputError
from bamboo.files import read_file

WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


class TextEncoder(NamedTuple):
    """An encoder under a new head.

    Args:
        model: a model of transformers that gives logits (B, labels).
        tokenizer: its fast tokenizer.
        notes: what was taken for granted in loading it, and which weights are new.
    """

    model: PreTrainedModel
    tokenizer: Any
    notes: tuple[str, ...]


def open_encoder(source: str | Path, labels: int, dropout: float | None = 0.1, seed: int = 0) -> TextEncoder:
    """Load an encoder with a head for `labels` classes, or for one number.

    Args:
        source: a checkpoint of this project, a Hugging Face folder, or `hf:NAME`, of which `hf:` may be left out.
        labels: outputs of the head.
        dropout: every dropout probability that the encoder has; None leaves them as they were in pretraining.
        seed: of weights that the source does not have.

    Raises:
        InputError: where there is no such encoder, in one line.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(f"dropout must be a share of one, got {dropout}")
    name = str(source).removeprefix("hf:")
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        if Path(name).is_file():
            return _open_checkpoint(name, labels, dropout)
        if Path(name).suffix in WEIGHTS:
            raise InputError(f"{name} is missing: give the path of a checkpoint, a Hugging Face folder or hf:NAME")
        return _open_huggingface(name, labels, dropout)


def _open_checkpoint(name: str, labels: int, dropout: float | None) -> TextEncoder:
    from bamboo.text.checkpoints import load_text

    loaded = load_text(name)
    config = _adapted(copy.deepcopy(loaded.model.config), labels, dropout)
    model = AutoModelForSequenceClassification.from_config(config)
    new = load_matching(model, loaded.model.state_dict())
    return TextEncoder(model, loaded.tokenizer, (*loaded.notes, *_told(new)))


def _open_huggingface(name: str, labels: int, dropout: float | None) -> TextEncoder:
    from transformers import AutoConfig

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{name} holds no config.json: give a Hugging Face folder, hf:NAME or a checkpoint file")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=_adapted(config, labels, dropout),
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{name} has no fast tokenizer: a file tokenizer.json is needed")
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return TextEncoder(model, tokenizer, _told(new))


def _adapted(config: PreTrainedConfig, labels: int, dropout: float | None) -> PreTrainedConfig:
    config.num_labels = labels
    for name, value in config.to_dict().items():
        if dropout is not None and "dropout" in name and isinstance(value, float | int):
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

    return longest_sequence(config) if getattr(config, "max_position_embeddings", None) else None


def tells_pairs_apart(config: PreTrainedConfig) -> bool:
    """Whether the encoder embeds which text of a pair a token is from."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def _told(new: set[str]) -> tuple[str, ...]:
    """One line for the weights that are drawn at random."""
    modules = sorted({name.rpartition(".")[0] for name in new})
    return (f"new weights: {', '.join(modules)}",) if modules else ()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables of weights: what matters of them is in the notes."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
