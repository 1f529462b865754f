"""Masked language models from checkpoints of this project or of Hugging Face, and out to Hugging Face."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bamboo.errors import InputError
from bamboo.files import is_text_checkpoint, read_file
from bamboo.text.encoder import build_config, build_model, longest_sequence
from bamboo.text.tokenizer import save_tokenizer, special_ids

ENCODER = ("shape", "architecture", "vocab_size", "positions", "dropout", "pad_token_id")
NO_GUESSES = "a classifier: what it would guess for a masked token is drawn at random"


class TextModel(NamedTuple):
    """A masked language model in evaluation mode, its tokenizer, and what was taken for granted in loading them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()


def load_text(source: str | Path) -> TextModel:
    """Load a masked language model.

    Args:
        source: a checkpoint of `MLMPretraining`, or of a text classifier, of which the encoder alone is taken; a
            Hugging Face folder, or a name on its hub, with or without `hf:`.

    Raises:
        InputError: one line that names the source and says what is wrong with it.
    """
    text = str(source)
    if Path(text).is_file():
        return _of_checkpoint(text)
    if text.endswith((".ckpt", ".pt", ".pth", ".safetensors")):
        raise InputError(f"{text} is missing: give the path of a checkpoint, or a Hugging Face folder")
    return _of_huggingface(text.removeprefix("hf:"))


def is_classifier(content: Mapping[str, Any]) -> bool:
    """Whether what a file holds is a checkpoint of `GlueClassifier`, which says the configuration of its model."""
    return is_text_checkpoint(content) and bool(content.get("hyper_parameters", {}).get("model_config"))


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """What a checkpoint must hold for `restore_tokenizer` to build a fast tokenizer again, as plain values."""
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    names = ("model_max_length", "padding_side", "model_input_names")
    options = {**special, **{name: getattr(tokenizer, name) for name in names}}
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "tokenizer_options": options}


def restore_tokenizer(checkpoint: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer whose `tokenizer_state` is in a checkpoint."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(checkpoint["tokenizer"]), **checkpoint["tokenizer_options"]
    )


def load_text_classifier(path: str | Path) -> TextModel:
    """A fine-tuned classifier, with the names of its classes in its configuration, from a checkpoint.

    Raises:
        InputError: where the file is no checkpoint of a fine-tuned text classifier.
    """
    content = read_file(path)
    if not is_classifier(content):
        raise InputError(f"{path} is no checkpoint of a fine-tuned text classifier")
    config = AutoConfig.for_model(**content["hyper_parameters"]["model_config"])
    model = AutoModelForSequenceClassification.from_config(config)
    state = content["state_dict"].items()
    _fill(model, {key.removeprefix("model."): tensor for key, tensor in state if key.startswith("model.")}, path)
    return TextModel(model.eval(), restore_tokenizer(content))


def export_text(source: str | Path, out: Path) -> list[Path]:
    """Write a folder that `AutoTokenizer` and `AutoModelForMaskedLM` load, with equal outputs.

    Of a fine-tuned classifier it is one for `AutoModelForSequenceClassification`, with the names of the classes. It is
    written beside `out` first, and takes its name when it is complete.

    Args:
        source: as for `load_text`.
        out: the folder; what is in it under the same names is replaced.

    Raises:
        InputError: where the source cannot be read or the folder not be written.
    """
    classifier = Path(source).is_file() and is_classifier(read_file(source))
    model, tokenizer, _ = load_text_classifier(source) if classifier else load_text(source)
    return save_text(model, tokenizer, out, own=Path(source).is_file() and not classifier)


def save_text(model: PreTrainedModel, tokenizer: Any, out: Path, own: bool = False) -> list[Path]:
    """Write a Hugging Face folder, whole or not at all.

    Args:
        model: of transformers.
        tokenizer: its fast tokenizer.
        out: the folder; what is in it under the same names is replaced.
        own: whether the tokenizer is one of this project's.

    Raises:
        InputError: where the folder cannot be written.
    """
    temporary = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        if own:
            save_tokenizer(
                Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), temporary, tokenizer.model_max_length
            )
        else:
            tokenizer.save_pretrained(temporary)
        out.mkdir(parents=True, exist_ok=True)
        paths = [path.replace(out / path.name) for path in sorted(temporary.iterdir())]
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return paths


def _of_checkpoint(path: str) -> TextModel:
    content = read_file(path)
    if not is_text_checkpoint(content):
        raise InputError(f"{path} is no checkpoint of a masked language model: it holds no tokenizer")
    if is_classifier(content):
        return _encoder_of(path)
    tokenizer = Tokenizer.from_str(content["tokenizer"])
    ids, told = special_ids(tokenizer), content["hyper_parameters"]
    config = build_config(**{key: told[key] for key in ENCODER if key in told})
    config.bos_token_id, config.eos_token_id = ids["cls"], ids["sep"]
    if config.model_type == "modernbert":
        config.cls_token_id, config.sep_token_id = ids["cls"], ids["sep"]
    model = build_model(config)
    weights = {
        key.removeprefix("model."): tensor for key, tensor in content["state_dict"].items() if key.startswith("model.")
    }
    classifier = "head.weight" in content["state_dict"]
    _fill(model.base_model if classifier else model, weights, path)
    notes = (NO_GUESSES,) if classifier else ()
    names = {f"{role}_token": tokenizer.id_to_token(number) for role, number in ids.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest_sequence(config), **names)
    return TextModel(model.eval(), fast, notes)


def _encoder_of(path: str) -> TextModel:
    """The encoder of a fine-tuned classifier under a fresh masked language model's head."""
    classifier, tokenizer, _ = load_text_classifier(path)
    try:
        model = AutoModelForMaskedLM.from_config(classifier.config)
    except ValueError as error:
        raise InputError(f"{path}: transformers has no masked {classifier.config.model_type}") from error
    model.base_model.load_state_dict(classifier.base_model.state_dict(), strict=False)
    return TextModel(model.eval(), tokenizer, (NO_GUESSES,))


def _fill(model: Any, weights: Mapping[str, Any], path: str | Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its own description: {str(error).splitlines()[-1].strip()}") from error


def _of_huggingface(name: str) -> TextModel:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, report = AutoModelForMaskedLM.from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{name} cannot be loaded: {reason}") from error
    missing = sorted(report["missing_keys"])
    notes = (f"not in {name}, and drawn at random: {', '.join(missing[:4])}",) if missing else ()
    return TextModel(model.eval(), tokenizer, notes)
