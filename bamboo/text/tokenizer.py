"""Tokenizers as files that transformers reads too, and the roles of their special tokens."""

import json
import re
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from bamboo.errors import InputError
from bamboo.files import write_text

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MASK = "[MASK]"
"""How a mask is written in sentences, whatever the tokenizer calls it."""
ROLES = {"pad": r"\W*pad(ding)?\W*", "unk": r"\W*unk\W*", "mask": r"\W*mask\W*"}


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The numbers of the special tokens by role. Raises `InputError` without `cls`, `sep` or `mask`.

    `cls` and `sep` are what the tokenizer puts before and behind a text, such as `[CLS]` and `[SEP]` or `<s>` and
    `</s>`; `mask`, `pad` and `unk` are the special tokens of these names. Without a token for padding, `pad` is `sep`.
    """
    added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    around = tokenizer.encode("").ids
    ids = {"cls": around[0], "sep": around[-1]} if len(around) == 2 else {}
    ids |= {role: n for role, name in ROLES.items() for n, token in added.items() if re.fullmatch(name, token, re.I)}
    missing = [role for role in ("cls", "sep", "mask") if role not in ids]
    if missing:
        raise InputError(f"the tokenizer has no special token for {', '.join(missing)}: expected cls, sep and mask")
    return {"pad": ids["sep"], **ids}


def continues_word(tokenizer: Tokenizer) -> list[bool]:
    """Which tokens go on with a word: those with `##` of WordPiece, of others those that no blank precedes."""
    words = [tokenizer.id_to_token(number) or "" for number in range(tokenizer.get_vocab_size())]
    if isinstance(tokenizer.model, WordPiece):
        return [word.startswith("##") for word in words]
    added = tokenizer.get_added_tokens_decoder()
    return [not word.startswith(("Ġ", "▁")) and number not in added for number, word in enumerate(words)]


def literal(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to which a [SEP] or [MASK] that is written in a text is text like any other."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def load_tokenizer(path: str | Path, cased: bool = False) -> Tokenizer:
    """Read a tokenizer; padding and truncation are switched off.

    Args:
        path: a `tokenizer.json` of any kind, BERT's `vocab.txt`, or a folder with either or that `AutoTokenizer` reads.
            The `tokenizer_config.json` beside a `vocab.txt` says whether to lower-case and strip accents.
        cased: do not lower-case, for a `vocab.txt` that has no `tokenizer_config.json`.

    Raises:
        InputError: where the files are missing or damaged, lack a special token, or contradict `cased`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is missing: give a tokenizer.json, a vocab.txt, or the folder of a tokenizer")
    file = next((path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()), path)
    config = {**_read_config(file, "special_tokens_map.json"), **_read_config(file, "tokenizer_config.json")}
    try:
        tokenizer = _read(file, {"do_lower_case": not cased, **config})
    except InputError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        expected = "expected a tokenizer.json, a vocab.txt, or a folder with it"
        raise InputError(f"{file} is no tokenizer: {expected}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()  # files of sentence encoders cut at 128 tokens
    _surround_as_configured(tokenizer, config)
    gaps = {*range(tokenizer.get_vocab_size())} - {*tokenizer.get_vocab().values()}
    if gaps:
        raise InputError(f"{file}: number {min(gaps)} has no token: is a token there twice?")
    try:
        special_ids(tokenizer)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if cased and getattr(tokenizer.normalizer, "lowercase", False):
        raise InputError(f"{file} lower-cases, which is not to be (cased)")
    return tokenizer


def _read_config(file: Path, name: str) -> dict[str, Any]:
    beside = (file if file.is_dir() else file.parent) / name
    try:
        return {**json.loads(beside.read_text(encoding="utf-8"))} if beside.is_file() else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{beside} is damaged: expected a JSON object") from error


def _read(file: Path, config: dict[str, Any]) -> Tokenizer:
    if file.is_dir():
        from transformers import AutoTokenizer  # with torch, which takes half a gigabyte

        tokenizer = AutoTokenizer.from_pretrained(file, trust_remote_code=False, local_files_only=True)
        return cast(Tokenizer, tokenizer.backend_tokenizer)
    if file.suffix == ".json":
        return Tokenizer.from_file(str(file))
    vocabulary = WordPiece.read_file(str(file))
    if missing := [token for token in BERT_SPECIAL if token not in vocabulary]:
        expected = f"expected a vocabulary with {', '.join(BERT_SPECIAL)}"
        raise InputError(f"{file} has no {', '.join(missing)}: {expected}")
    lowercase, chinese = bool(config["do_lower_case"]), bool(config.get("tokenize_chinese_chars", True))
    return bert_tokenizer(vocabulary, normalizers.BertNormalizer(True, chinese, config.get("strip_accents"), lowercase))


def bert_tokenizer(vocabulary: dict[str, int], normalizer: Any) -> Tokenizer:
    """BERT's tokenizer with a vocabulary, in which the tokens of `BERT_SPECIAL` are."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    _surround(tokenizer, "[CLS]", "[SEP]")
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _surround_as_configured(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Have the tokenizer add what its configuration calls cls (or bos) and sep (or eos)."""
    named = {key: token["content"] if isinstance(token, dict) else token for key, token in config.items()}
    first, last = (named.get(f"{a}_token") or named.get(f"{b}_token") for a, b in (("cls", "bos"), ("sep", "eos")))
    if first and last and tokenizer.encode("").tokens != [first, last]:
        _surround(tokenizer, first, last)


def _surround(tokenizer: Tokenizer, first: str, last: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int | None = None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` and `load_tokenizer` read.

    `longest` is the number of tokens that the model beside it reads, at most.
    """
    roles = {f"{role}_token": tokenizer.id_to_token(number) for role, number in special_ids(tokenizer).items()}
    pairs = ["token_type_ids"] if isinstance(tokenizer.model, WordPiece) else []  # by which BERT tells sentences apart
    inputs = {"model_input_names": ["input_ids", *pairs, "attention_mask"]}
    limit = {} if longest is None else {"model_max_length": longest}
    config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles, **inputs, **limit}, indent=2)
    for name, text in {"tokenizer_config": config, "tokenizer": tokenizer.to_str(pretty=True)}.items():
        write_text(folder / f"{name}.json", text + "\n")
