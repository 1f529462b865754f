"""Text for masked language modelling: a packed corpus, or the English that comes with the dependencies."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from bamboo.data import SampledData
from bamboo.errors import InputError
from bamboo.sampling import NOTHING, Loader
from bamboo.seeds import derive_seed
from bamboo.text.corpus import Corpus
from bamboo.text.glosses import read_glosses
from bamboo.text.tokenizer import special_ids
from bamboo.text.wordpiece import train_wordpiece

Tokens = NDArray[np.integer[Any]]


class Text(NamedTuple):
    """A tokenizer, and token streams to train and to validate on: documents end to end, a [SEP] behind each."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens


class Blocks(Dataset[Tokens | None]):
    """A token stream (N,) cut into blocks of [CLS], `length` - 2 tokens of the stream, [SEP]; a rest is left out.

    A stream that is mapped from a file goes to worker processes by the file's name, and they map it themselves.

    Args:
        stream: token numbers, in memory or on the disk.
        length: tokens of a block.
        tokenizer: whose [CLS] and [SEP] to use.
        limit: take at most so many blocks, evenly spread over the stream.
    """

    def __init__(self, stream: Tokens, length: int, tokenizer: Tokenizer, limit: int | None = None):
        self.stream, self.length = stream, length
        self.ids = special_ids(tokenizer)
        self.available = len(stream) // (length - 2)
        self.count = self.available if limit is None else min(limit, self.available)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        # Not so for a part of a map, which numpy gives the name of the whole file.
        if isinstance(self.stream, np.memmap) and isinstance(self.stream.base, mmap):
            return {**self.__dict__, "stream": (self.stream.filename, self.stream.dtype)}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.stream, tuple):
            self.stream = np.memmap(*self.stream, mode="r")

    def __getitem__(self, key: int | tuple[int, int]) -> Tokens | None:
        """Block `index`, given alone or as `(index, epoch)`; None for `NOTHING`."""
        index = key if isinstance(key, int) else key[0]
        if index == NOTHING:
            return None
        start = index * self.available // self.count * (self.length - 2)
        block = np.empty(self.length, np.int64)
        block[0], block[-1] = self.ids["cls"], self.ids["sep"]
        block[1:-1] = self.stream[start : start + self.length - 2]
        return block


class TextData(SampledData):
    """What all text data share; a batch is `{"input_ids": int64 (B, T), "special_tokens_mask": bool (B, T)}`.

    Blocks have one length and no padding.

    Args:
        block_length: tokens of a block, [CLS] and [SEP] included.
        batch_size: blocks per process and step.
        num_workers: processes that read blocks, per training process.
        seed: seed of the order, and of what is held out.
        val_blocks: held-out blocks, at most, that each validation reads, always the same and evenly spread; null for
            all of them.

    Raises:
        InputError: where one of these cannot be.
    """

    def __init__(
        self,
        block_length: int = 128,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_blocks: int | None = 10_000,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.block_length, self.val_blocks = block_length, val_blocks
        if val_blocks is not None and val_blocks < 1:
            raise InputError(f"val_blocks must be positive, or null for all held-out blocks, got {val_blocks}")
        if block_length < 8 or batch_size < 1 or num_workers < 0:
            raise InputError(
                "block_length must be at least 8, batch_size positive and num_workers not negative, got "
                f"{block_length}, {batch_size} and {num_workers}"
            )

    @abstractmethod
    def read_text(self) -> Text:
        """Find the text; raises `InputError` where there is none."""

    @cached_property
    def text(self) -> Text:
        """The text, found at the first use."""
        return self.read_text()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return self.text.tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer."""
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def most_frequent_token(self) -> int:
        """The token that the first ten million of the training text hold most often, special ones aside."""
        counts = np.bincount(self.text.train[:10_000_000], minlength=self.vocab_size)
        counts[list(special_ids(self.tokenizer).values())] = 0
        return int(counts.argmax())

    def setup(self, stage: str | None = None) -> None:
        """Find the text, so that bad input shows before anything starts."""
        for name, stream in (("training", self.text.train), ("validation", self.text.val)):
            if len(stream) < self.block_length - 2:
                raise InputError(f"{len(stream)} {name} tokens do not fill a block of {self.block_length}")
        super().setup(stage)

    def train_dataloader(self) -> Loader:
        """Shuffled blocks of this process's share of the text."""
        return self.train_loader(self.blocks(self.text.train), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """At most `val_blocks` held-out blocks, each of them once over all processes."""
        return self.eval_loader(self.blocks(self.text.val, self.val_blocks))

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """`collate` for blocks of this length and tokenizer."""
        return partial(collate, self.block_length, sorted(special_ids(self.tokenizer).values()))

    def blocks(self, stream: Tokens, limit: int | None = None) -> Blocks:
        """A stream in blocks of this length; at most `limit` of them, evenly spread."""
        return Blocks(stream, self.block_length, self.tokenizer, limit)


def collate(length: int, special: Sequence[int], blocks: Sequence[Tokens | None]) -> dict[str, Any]:
    """A batch of blocks of `length` tokens, those that are None left out, and which of the tokens are special."""
    given = [block for block in blocks if block is not None]
    ids = torch.from_numpy(np.stack(given)) if given else torch.empty(0, length, dtype=torch.int64)
    return {"input_ids": ids, "special_tokens_mask": torch.isin(ids, torch.tensor(special))}


class PackedCorpus(TextData):
    """A corpus that `bamboo tokenize` wrote.

    Args:
        root: its folder; `~` is expanded.
        **kwargs: arguments of `TextData`.
    """

    def __init__(self, root: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()

    def read_text(self) -> Text:
        """The streams, mapped into memory."""
        corpus = Corpus.open(self.root)
        return Text(corpus.tokenizer, corpus.train.tokens, corpus.val.tokens)


class ShippedEnglish(TextData):
    """English that comes with the dependencies: the manual of Python's language, and WordNet's glosses from timm.

    65,000 words of the manual, a document for each of its topics, and 254,000 words of definitions, a hundred to a
    document. A share of the documents is held out. A WordPiece vocabulary is trained on the others, in seconds.

    Args:
        vocab_size: tokens of the vocabulary.
        val_fraction: share of the documents that is held out.
        **kwargs: arguments of `TextData`.
    """

    def __init__(self, vocab_size: int = 4096, val_fraction: float = 0.05, **kwargs: Any):
        super().__init__(**kwargs)
        self.asked_size, self.val_fraction = vocab_size, val_fraction
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")

    def read_text(self) -> Text:
        """Read, split, train the vocabulary and tokenise; once in a process."""
        return shipped_english(self.asked_size, self.val_fraction, self.seed)


@lru_cache(maxsize=4)
def shipped_english(vocab_size: int, val_fraction: float, seed: int) -> Text:
    """The text of `ShippedEnglish`."""
    parts: tuple[list[str], list[str]] = [], []
    for number, document in enumerate(shipped_documents()):
        held_out = derive_seed(seed, "held out", number) / 2**63 < val_fraction
        parts[held_out].append(document)
    tokenizer = train_wordpiece(parts[0], vocab_size)
    return Text(tokenizer, *(_stream(tokenizer, documents) for documents in parts))


def shipped_documents() -> list[str]:
    """The topics of Python's manual, and WordNet's glosses by the hundred."""
    from pydoc_data.topics import topics

    glosses = [gloss.text for gloss in read_glosses()]
    groups = ["\n".join(glosses[start : start + 100]) for start in range(0, len(glosses), 100)]
    return [*(topics[name] for name in sorted(topics)), *groups]


def _stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Tokens:
    separator = special_ids(tokenizer)["sep"]
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True  # a [SEP] that is written in a text is text: the token ends a document
    encoded = plain.encode_batch(list(documents), add_special_tokens=False)
    pieces = [np.asarray([*one.ids, separator], np.uint16) for one in encoded]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)
