"""Training of BERT's WordPiece vocabularies."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.text.tokenizer import BERT_SPECIAL, bert_tokenizer

SMALLEST = 64
COVERAGE, ALPHABET = 0.9995, 1000


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, lowercase: bool = True, sample_bytes: int = 32 << 20
) -> Tokenizer:
    """Train a WordPiece vocabulary with BERT's normalisation; [PAD] is 0 and the other special tokens follow.

    Same texts, same vocabulary: the trainer of tokenizers numbers characters in an order that changes from run to run,
    so they are counted and ordered here. The alphabet is the 1,000 most frequent characters, and if they are less than
    99.95 % of the text, as in Chinese, so many that they are; it takes at most half of the vocabulary.

    Args:
        texts: read once and streamed; where they are more than `sample_bytes`, so many or an eighth less are drawn
            evenly from all of them to train on.
        vocab_size: the number of tokens to reach. Fewer come out where no more pieces of words occur twice.
        lowercase: whether to lower-case and strip accents.
        sample_bytes: of text in UTF-8, at most, to train on.

    Raises:
        InputError: if there is no text, or the size is below 64.
    """
    if vocab_size < SMALLEST:
        raise InputError(f"vocab_size must be at least {SMALLEST}, got {vocab_size}")
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    sample = _sample(texts, sample_bytes)
    characters = _alphabet(sample, normalizer, (vocab_size - len(BERT_SPECIAL)) // 4)
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
        special_tokens=[*BERT_SPECIAL, *characters, *inner],  # only to give them their numbers
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode() for text in sample), trainer)
    return bert_tokenizer(tokenizer.get_vocab(with_added_tokens=False), normalizer)


def _sample(texts: Iterable[str], limit: int) -> list[bytes]:
    """Texts in UTF-8, all of them or a share drawn by hash; together at most `limit` bytes."""
    kept: list[tuple[int, bytes]] = []
    size, bar = 0, 1 << 63
    for number, text in enumerate(text.encode() for text in texts):
        draw = derive_seed(0, "vocabulary", number)
        if draw < bar:
            kept.append((draw, text))
            size += len(text)
        while size > limit:
            bar = bar * 7 // 8
            kept = [(draw, text) for draw, text in kept if draw < bar]
            size = sum(len(text) for _, text in kept)
    return [text for _, text in kept]


def _alphabet(sample: Sequence[bytes], normalizer: Any, most: int) -> list[str]:
    counts: Counter[str] = Counter()
    for text in sample:
        counts.update(c for c in normalizer.normalize_str(text.decode()) if not c.isspace())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    seen = accumulate((count for _, count in ranked), initial=0)
    short = sum(total < COVERAGE * counts.total() for total in seen)  # so many of the first do not cover the text
    return sorted(character for character, _ in ranked[: min(most, max(ALPHABET, short))])
