"""BERT's WordPiece tokenizers: training a vocabulary, and tokenizers as files that transformers reads too."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece

from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.seeds import derive_seed
from bamboo.text.pieces import pieces

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SAMPLE = 32 << 20
"""Bytes of text, at most, that a vocabulary is trained on."""
SMALLEST = 64
COVERAGE, ALPHABET = 0.9995, 1000


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Train a WordPiece vocabulary with BERT's normalisation; [PAD] is 0 and the other special tokens follow.

    Same texts, same vocabulary: the trainer of tokenizers numbers characters in an order that changes from run to run,
    so they are counted and ordered here. The alphabet is the 1,000 most frequent characters, and if they are less than
    99.95 % of the text, as in Chinese, so many that they are; it takes at most half of the vocabulary.

    Args:
        texts: read once and streamed; of more than 32 MiB, 28 to 32 MiB are drawn evenly to train on.
        vocab_size: the number of tokens to reach. Fewer come out where no more pieces of words occur twice.
        lowercase: whether to lower-case and strip accents.

    Raises:
        InputError: if there is no text, or the size is below 64.
    """
    if vocab_size < SMALLEST:
        raise InputError(f"vocab_size must be at least {SMALLEST}, got {vocab_size}")
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    sample = _sample(texts, SAMPLE)
    characters = _alphabet(sample, normalizer, (vocab_size - len(SPECIAL)) // 4)
    if not characters:
        raise InputError("there is no text to train a vocabulary on")
    # A character of its own word, such as a full stop, never continues one.
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    inner = [f"##{c}" for c in characters if len(split(normalizer.normalize_str(f"a{c}"))) == 1]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL, *characters, *inner],  # only to give them their numbers
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece.decode() for piece in sample), trainer)
    return _bert(tokenizer.get_vocab(with_added_tokens=False), normalizer)


def _sample(texts: Iterable[str], limit: int) -> list[bytes]:
    """Pieces of the texts in UTF-8, all of them or a share drawn by hash; together at most `limit` bytes."""
    kept: list[tuple[int, bytes]] = []
    size, bar = 0, 1 << 63
    for number, piece in enumerate(piece.encode() for text in texts for piece in pieces(text)):
        draw = derive_seed(0, "vocabulary", number)
        if draw < bar:
            kept.append((draw, piece))
            size += len(piece)
        while size > limit:
            bar = bar * 7 // 8
            kept = [(draw, piece) for draw, piece in kept if draw < bar]
            size = sum(len(piece) for _, piece in kept)
    return [piece for _, piece in kept]


def _alphabet(sample: list[bytes], normalizer: Any, most: int) -> list[str]:
    counts: Counter[str] = Counter()
    for piece in sample:
        counts.update(normalizer.normalize_str(piece.decode()))
    ranked = sorted(((-count, c) for c, count in counts.items() if not c.isspace()))
    wanted, seen = COVERAGE * sum(-count for count, _ in ranked), 0
    for number, (count, _) in enumerate(ranked):
        if number >= most or (number >= ALPHABET and seen >= wanted):
            ranked = ranked[:number]
            break
        seen -= count
    return sorted(c for _, c in ranked)


def _bert(vocabulary: dict[str, int], normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    return _finished(tokenizer)


def _finished(tokenizer: Tokenizer) -> Tokenizer:
    """With all that BERT's tokenizer has besides, so that equal tokenizers have an equal `to_str()`."""
    tokenizer.add_special_tokens(list(SPECIAL))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.no_padding()
    tokenizer.no_truncation()  # files of sentence encoders cut at 128 tokens
    return tokenizer


def load_tokenizer(path: str | Path, cased: bool = False) -> Tokenizer:
    """Read BERT's tokenizer from a `vocab.txt`, a `tokenizer.json`, or a folder with either.

    Args:
        path: of the file or folder, such as a Hugging Face model's. Beside a `vocab.txt`, `tokenizer_config.json` says
            whether to lower-case and strip accents.
        cased: do not lower-case, for a `vocab.txt` that has no `tokenizer_config.json`.

    Raises:
        InputError: where the files are missing or damaged, another kind of tokenizer, lack one of the special tokens,
            or contradict `cased`.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / n for n in ("tokenizer.json", "vocab.txt") if (path / n).is_file()), path)
    if not file.is_file():
        state = "has neither vocab.txt nor tokenizer.json" if path.is_dir() else "is missing"
        raise InputError(f"{path} {state}: give a vocab.txt, a tokenizer.json, or a folder with either")
    tokenizer = _read_json(file) if file.suffix == ".json" else _read_vocabulary(file, cased)
    if cased and tokenizer.normalizer.lowercase:
        raise InputError(f"{file} lower-cases, which is not to be (cased)")
    return tokenizer


def _read_json(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{file} is no tokenizer: expected a tokenizer.json as tokenizers writes it") from error
    parts = [type(p).__name__ for p in (tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer)]
    expected = ["WordPiece", "BertNormalizer", "BertPreTokenizer"]
    if parts != expected:
        raise InputError(f"{file} is made of {', '.join(parts)}: expected BERT's {', '.join(expected)}")
    _check_vocabulary(file, tokenizer.get_vocab())
    return _finished(tokenizer)


def _read_vocabulary(file: Path, cased: bool) -> Tokenizer:
    beside = file.with_name("tokenizer_config.json")
    try:
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {"do_lower_case": not cased}
        options: dict[str, Any] = {
            "lowercase": bool(config.get("do_lower_case", True)),
            "strip_accents": config.get("strip_accents"),
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        }
    except (ValueError, AttributeError) as error:
        raise InputError(f"{beside} is damaged: expected a JSON object") from error
    try:
        vocabulary = WordPiece.read_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{file} is no vocabulary: expected UTF-8 text with a token on each line") from error
    _check_vocabulary(file, vocabulary)
    return _bert(vocabulary, normalizers.BertNormalizer(**options))


def _check_vocabulary(file: Path, vocabulary: dict[str, int]) -> None:
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise InputError(f"{file} has no {', '.join(missing)}: expected a vocabulary with {', '.join(SPECIAL)}")
    gap = next((number for number, found in enumerate(sorted(vocabulary.values())) if number != found), None)
    if gap is not None:
        raise InputError(f"{file}: number {gap} has no token: is a token there twice?")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int | None = None) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `vocab.txt`, from which `AutoTokenizer` makes BERT's.

    Args:
        tokenizer: as `train_wordpiece` and `load_tokenizer` make it.
        folder: to write into.
        longest: tokens that the model beside it reads, at most.
    """
    normalizer: Any = tokenizer.normalizer
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        **{f"{name}_token": token for name, token in _names()},
        **({} if longest is None else {"model_max_length": longest}),
    }
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda pair: pair[1])
    _write(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocabulary))
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    _write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The numbers of the special tokens by name: pad, unk, cls, sep, mask."""
    return {name: _number(tokenizer, token) for name, token in _names()}


def _number(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise InputError(f"the tokenizer has no {token}: expected {', '.join(SPECIAL)}")
    return number


def _names() -> Iterator[tuple[str, str]]:
    return ((token.strip("[]").lower(), token) for token in SPECIAL)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
