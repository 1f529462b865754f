"""Text for masked language modelling: a packed corpus, or the English that comes with the dependencies."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from bamboo.data import SampledData
from bamboo.errors import InputError
from bamboo.sampling import NOTHING, Loader, evenly_spread
from bamboo.seeds import derive_seed
from bamboo.text.corpus import Corpus, Tokens
from bamboo.text.packing import encode
from bamboo.text.tokenizer import literal, special_ids
from bamboo.text.wordpiece import train_wordpiece

T = TypeVar("T")


class Samples(Dataset[dict[str, Tensor]]):
    """What is read a batch at a time, by numbers alone or as `(number, epoch)`; `NOTHING` is left out."""

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        numbers = [key if isinstance(key, int) else key[0] for key in keys]
        return self.batch([number for number in numbers if number != NOTHING])

    @abstractmethod
    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The samples of these numbers."""

    @abstractmethod
    def __len__(self) -> int: ...


class Blocks(Samples):
    """A token stream (N,) cut into blocks of [CLS], `length` - 2 tokens of the stream, [SEP]; a rest is left out.

    With a `limit`, at most so many blocks, evenly spread over the stream. A stream that is mapped from a file goes to
    worker processes by the file's name, and they map it themselves.
    """

    def __init__(self, stream: Tokens, length: int, tokenizer: Tokenizer, limit: int | None = None):
        self.stream, self.length, self.ids = stream, length, special_ids(tokenizer)
        self.places = evenly_spread(len(stream) // (length - 2), limit)

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        # Not so for a part of a map, which numpy gives the name of the whole file.
        if isinstance(self.stream, np.memmap) and isinstance(self.stream.base, mmap):
            return {**self.__dict__, "stream": (self.stream.filename, self.stream.dtype)}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.stream, tuple):
            self.stream = np.memmap(*self.stream, mode="r")

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Of these blocks, `input_ids` (B, T) and `special_tokens_mask` (B, T)."""
        blocks = np.empty((len(numbers), self.length), np.int64)
        blocks[:, 0], blocks[:, -1] = self.ids["cls"], self.ids["sep"]
        for row, number in enumerate(numbers):
            start = self.places[number] * (self.length - 2)
            blocks[row, 1:-1] = self.stream[start : start + self.length - 2]
        ids = torch.from_numpy(blocks)
        return {"input_ids": ids, "special_tokens_mask": torch.isin(ids, torch.tensor([*self.ids.values()]))}


class TokenData(SampledData):
    """What all data of tokens have in common; `length` is the number of tokens of a sample."""

    def __init__(self, length: int, batch_size: int, num_workers: int, seed: int):
        super().__init__(batch_size, num_workers, seed)
        self.length = length
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"batch_size must be positive and num_workers not negative, got {batch_size}, {num_workers}"
            )

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that makes the tokens."""

    @abstractmethod
    def samples(self, split: str) -> Samples:
        """What `train` or `val` consists of."""

    def train_dataloader(self) -> Loader:
        """Shuffled samples of this process's share."""
        return self.train_loader(self.samples("train"), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out samples, each of them once over all processes."""
        return self.eval_loader(self.samples("val"))

    def probe_loaders(self, limit: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Training samples and held-out ones, in order, for a look at a model: at most `limit` of each, evenly spread.

        Neighbours are alike: WordNet lists animals beside animals.
        """
        return self._spread("train", limit), self._spread("val", limit)

    def _spread(self, split: str, limit: int) -> DataLoader[Any]:
        samples = self.samples(split)
        count = min(limit, len(samples))
        chosen = Subset(samples, [place * len(samples) // count for place in range(count)])
        return DataLoader(chosen, self.batch_size, **self.loader_options())


class TextData(TokenData):
    """Text in blocks of one length, without padding.

    Args:
        block_length: tokens of a block, [CLS] and [SEP] included.
        batch_size: blocks per process and step.
        num_workers: processes that read blocks, per training process.
        seed: seed of the order, and of what is held out.
        val_blocks: held-out blocks, at most, that each validation reads, always the same and evenly spread; null for
            all of them.
    """

    def __init__(
        self,
        block_length: int = 128,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_blocks: int | None = 10_000,
    ):
        super().__init__(block_length, batch_size, num_workers, seed)
        self.val_blocks = val_blocks
        if val_blocks is not None and val_blocks < 1:
            raise InputError(f"val_blocks must be positive, or null for all held-out blocks, got {val_blocks}")
        if block_length < 8:
            raise InputError(f"block_length must be at least 8, got {block_length}")

    @cached_property
    @abstractmethod
    def text(self) -> Corpus:
        """The text, found at the first use; raises `InputError` where there is none."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return self.text.tokenizer

    @cached_property
    def most_frequent_token(self) -> int:
        """The token that the first ten million of the training text hold most often, special ones aside."""
        counts = np.bincount(self.text.train[:10_000_000], minlength=self.tokenizer.get_vocab_size())
        counts[list(special_ids(self.tokenizer).values())] = 0
        return int(counts.argmax())

    def setup(self, stage: str | None = None) -> None:
        """Find the text, so that bad input shows before anything starts."""
        for name, stream in (("training", self.text.train), ("validation", self.text.val)):
            if len(stream) < self.length - 2:
                raise InputError(f"{len(stream)} {name} tokens do not fill a block of {self.length}")
        super().setup(stage)

    def samples(self, split: str) -> Blocks:
        """All training blocks, or at most `val_blocks` of those held out."""
        stream, limit = (self.text.train, None) if split == "train" else (self.text.val, self.val_blocks)
        return Blocks(stream, self.length, self.tokenizer, limit)


class PackedCorpus(TextData):
    """A corpus that `bamboo tokenize` wrote.

    Args:
        root: its folder; `~` is expanded.
        **kwargs: arguments of `TextData`.
    """

    def __init__(self, root: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()

    @cached_property
    def text(self) -> Corpus:
        """The streams, mapped into memory."""
        return Corpus.open(self.root)


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
        self.vocab_size, self.val_fraction = vocab_size, val_fraction
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")

    @cached_property
    def text(self) -> Corpus:
        """Read, split, made into a vocabulary and tokenised; once in a process."""
        return _shipped_english(self.vocab_size, self.val_fraction, self.seed)


@lru_cache(maxsize=4)
def _shipped_english(vocab_size: int, val_fraction: float, seed: int) -> Corpus:
    parts = hold_out(shipped_documents(), val_fraction, seed)
    tokenizer = train_wordpiece(parts[0], vocab_size)
    train, val = (np.concatenate(encode(documents, literal(tokenizer))) for documents in parts)
    return Corpus(tokenizer, train, val)


def hold_out(items: Iterable[T], val_fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """Items to train on and a share to validate on, drawn by their place."""
    parts: tuple[list[T], list[T]] = [], []
    for number, item in enumerate(items):
        parts[derive_seed(seed, "held out", number) / 2**63 < val_fraction].append(item)
    return parts


class Gloss(NamedTuple):
    """The number of a noun in WordNet, such as `n02084071`, and its definition."""

    synset: str
    text: str


def read_glosses() -> list[Gloss]:
    """The 21,844 definitions of nouns that timm ships as those of ImageNet's classes."""
    import timm.data

    path = Path(timm.data.__file__).parent / "_info" / "imagenet_synset_to_definition.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Gloss(*line.split("\t", 1)) for line in lines if "\t" in line]


def shipped_documents() -> list[str]:
    """The topics of Python's manual, and WordNet's glosses by the hundred."""
    from pydoc_data.topics import topics

    glosses = [gloss.text for gloss in read_glosses()]
    groups = ["\n".join(glosses[start : start + 100]) for start in range(0, len(glosses), 100)]
    return [*(topics[name] for name in sorted(topics)), *groups]
