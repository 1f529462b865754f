"""Language models from checkpoints of this project or of Hugging Face, and out to Hugging Face."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bamboo.errors import InputError, loading
from bamboo.files import is_text_checkpoint, read_file
from bamboo.text.attention import attach_positions, positions_of
from bamboo.text.encoder import build_model, config_of, is_causal, longest_sequence
from bamboo.text.tokenizer import save_tokenizer, special_ids

NO_GUESSES = "a classifier: what it would guess for a masked token is drawn at random"


class TextModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and what was taken for granted in loading them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()


def load_text(source: str | Path) -> TextModel:
    """Load a language model, masked or causal; `InputError` says in a line what is wrong with its source.

    Args:
        source: a checkpoint of `MLMPretraining`, or of a text classifier, of which the encoder alone is taken; a
            Hugging Face folder, or a name on its hub, with or without `hf:`.
    """
    return load_by_key(source)[0]


def load_by_key(source: str | Path) -> tuple[TextModel, list[str], list[str]]:
    """What `load_text` loads, the keys of the source that have no place in it, and those of it that start fresh."""
    text = str(source)
    if Path(text).is_file():
        content = read_file(text)
        loaded = _encoder_of_classifier(text) if is_classifier(content) else _of_checkpoint(text, content)
        inside, names = f"{loaded.model.base_model_prefix}.", loaded.model.state_dict()
        return loaded, [], [name for name in names if NO_GUESSES in loaded.notes and not name.startswith(inside)]
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
    tokenizer = Tokenizer.from_str(checkpoint["tokenizer"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **checkpoint["tokenizer_options"])


def load_text_classifier(path: str | Path) -> TextModel:
    """A fine-tuned classifier, with the names of its classes in its configuration, from a checkpoint of one."""
    content = read_file(path)
    if not is_classifier(content):
        raise InputError(f"{path} is no checkpoint of a fine-tuned text classifier")
    config = AutoConfig.for_model(**content["hyper_parameters"]["model_config"])
    model = attach_positions(AutoModelForSequenceClassification.from_config(config))
    _fill(model, content, path)
    return TextModel(model.eval(), restore_tokenizer(content))


def export_text(source: str | Path, out: Path) -> tuple[str, list[Path]]:
    """Write a Hugging Face folder with equal outputs; the class that loads it, and the files that were written.

    It is `AutoModelForMaskedLM` or `AutoModelForCausalLM`; of a fine-tuned classifier
    `AutoModelForSequenceClassification`, with the names of the classes; of a `TextClassification`, whose head
    transformers has no model for, `AutoModel`, the encoder alone. Raises `InputError` where the source, as for
    `load_text`, cannot be read or the folder not be written.
    """
    own = Path(source).is_file()
    if own and is_classifier(read_file(source)):
        model, tokenizer, _ = load_text_classifier(source)
        return "AutoModelForSequenceClassification", save_text(model, tokenizer, out)
    model, tokenizer, notes = load_text(source)
    if NO_GUESSES in notes:
        return "AutoModel", save_text(model.base_model, tokenizer, out, own)
    kind = "AutoModelForCausalLM" if is_causal(model.config) else "AutoModelForMaskedLM"
    return kind, save_text(model, tokenizer, out, own)


def check_exportable(config: PreTrainedConfig) -> None:
    """Raises `InputError` where transformers has no model with the positions of this one."""
    if (kind := positions_of(config)[0]) != "learned":
        raise InputError(
            f"transformers has no {config.model_type} with positions {kind}, so it cannot be written for it: use the "
            "checkpoint, or train one with learned positions"
        )


def save_text(model: PreTrainedModel, tokenizer: Any, out: Path, own: bool = False) -> list[Path]:
    """Write a Hugging Face folder, whole or not at all: beside `out` first.

    Args:
        model: of transformers.
        tokenizer: its fast tokenizer.
        out: the folder; what is in it under the same names is replaced.
        own: whether the tokenizer is one of this project's.

    Raises:
        InputError: where the folder cannot be written, or transformers has no model with the positions of this one.
    """
    check_exportable(model.config)
    temporary = out.resolve().with_name(f".{out.resolve().name}.partial")  # "." has no name of its own
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        if own:
            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            save_tokenizer(backend, temporary, tokenizer.model_max_length)
        else:
            tokenizer.save_pretrained(temporary)
        out.mkdir(parents=True, exist_ok=True)
        return [path.replace(out / path.name) for path in sorted(temporary.iterdir())]
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _of_checkpoint(path: str, content: Mapping[str, Any]) -> TextModel:
    """Of `MLMPretraining`, or the encoder of `TextClassification`."""
    if not is_text_checkpoint(content):
        raise InputError(f"{path} is no checkpoint of a language model: it holds no tokenizer")
    tokenizer, arguments = Tokenizer.from_str(content["tokenizer"]), content["hyper_parameters"]
    ids = special_ids(tokenizer)
    config = config_of(arguments)
    config.bos_token_id, config.eos_token_id = ids["cls"], ids["sep"]
    if config.model_type == "modernbert":
        config.cls_token_id, config.sep_token_id = ids["cls"], ids["sep"]
    model, has_head = build_model(config), "head.weight" in content["state_dict"]
    _fill(model.base_model if has_head else model, content, path)
    names = {f"{role}_token": tokenizer.id_to_token(number) for role, number in ids.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest_sequence(config), **names)
    return TextModel(model.eval(), fast, (NO_GUESSES,) if has_head else ())


def _encoder_of_classifier(path: str) -> TextModel:
    """The encoder of a fine-tuned classifier under a fresh masked language model's head."""
    classifier, tokenizer, _ = load_text_classifier(path)
    try:
        model = build_model(classifier.config)
    except ValueError as error:
        raise InputError(f"{path}: transformers has no masked {classifier.config.model_type}") from error
    model.base_model.load_state_dict(classifier.base_model.state_dict(), strict=False)
    return TextModel(model.eval(), tokenizer, (NO_GUESSES,))


def _fill(model: Any, content: Mapping[str, Any], path: str | Path) -> None:
    weights = content["state_dict"].items()
    try:
        model.load_state_dict({key.removeprefix("model."): t for key, t in weights if key.startswith("model.")})
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its own description: {str(error).splitlines()[-1].strip()}") from error


def _of_huggingface(name: str) -> tuple[TextModel, list[str], list[str]]:
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        options = {"trust_remote_code": False, "output_loading_info": True}
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind = AutoModelForCausalLM if is_causal(config) else AutoModelForMaskedLM
        model, report = kind.from_pretrained(name, **options)
    missing = sorted(report["missing_keys"])
    notes = (f"not in {name}, and drawn at random: {', '.join(missing[:4])}",) if missing else ()
    return TextModel(model.float().eval(), tokenizer, notes), sorted(report["unexpected_keys"]), missing
