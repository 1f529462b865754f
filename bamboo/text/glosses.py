"""WordNet's glosses with their subjects: a classification of short texts that needs no download."""

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bamboo.errors import InputError
from bamboo.text.data import Gloss, Samples, TokenData, hold_out, read_glosses
from bamboo.text.tokenizer import special_ids
from bamboo.text.wordpiece import train_wordpiece


class Glosses(Samples):
    """Definitions as tokens of one length, cut off or padded, and their classes."""

    def __init__(self, glosses: Sequence[Gloss], tokenizer: Tokenizer, length: int):
        ids = special_ids(tokenizer)
        encoded = tokenizer.encode_batch([gloss.text for gloss in glosses], add_special_tokens=False)
        rows = [[ids["cls"], *encoding.ids[: length - 2], ids["sep"]] for encoding in encoded]
        self.input_ids = torch.tensor([row + [ids["pad"]] * (length - len(row)) for row in rows])
        self.labels = torch.tensor([int(gloss.synset[1:3]) for gloss in glosses])
        self.pad, self.special = ids["pad"], torch.tensor([*ids.values()])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The definitions of these numbers."""
        ids = self.input_ids[numbers]
        read, special = ids != self.pad, torch.isin(ids, self.special)
        return {"input_ids": ids, "attention_mask": read, "special_tokens_mask": special, "label": self.labels[numbers]}


class GlossSubjects(TokenData):
    """Which subject a definition is of.

    WordNet numbers its nouns by subject: animals, artefacts, persons, plants and so on lie together. The class of a
    definition is the first two digits of that number, 0 to 15; large subjects have several, so that neighbouring
    classes are told apart by finer kinds. A batch is `{"input_ids": int64 (B, T),
    "attention_mask": bool (B, T), "special_tokens_mask": bool (B, T), "label": int64 (B,)}`.

    Args:
        vocab_size: tokens of the WordPiece vocabulary, trained on the definitions that are not held out.
        length: tokens of a text, special ones included; the rest is cut off, what is missing is padding.
        val_fraction: share of the definitions that is held out.
        batch_size: texts per process and step.
        num_workers: processes that read texts, per training process.
        seed: seed of the order and of what is held out.

    Raises:
        InputError: where one of these cannot be.
    """

    num_classes: ClassVar[int] = 16

    def __init__(
        self,
        vocab_size: int = 4096,
        length: int = 32,
        val_fraction: float = 0.1,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(length, batch_size, num_workers, seed)
        self.vocab_size, self.val_fraction = vocab_size, val_fraction
        if length < 4 or not 0 < val_fraction < 1:
            raise InputError(
                f"length must be at least 4 and val_fraction a share of one, got {length} and {val_fraction}"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """Trained on the definitions to train on."""
        return _read(self.vocab_size, self.val_fraction, self.seed)[0]

    def samples(self, split: str) -> Glosses:
        """Definitions to train on, or those held out."""
        tokenizer, *parts = _read(self.vocab_size, self.val_fraction, self.seed)
        return Glosses(parts[split == "val"], tokenizer, self.length)


@lru_cache(maxsize=4)
def _read(vocab_size: int, val_fraction: float, seed: int) -> tuple[Tokenizer, list[Gloss], list[Gloss]]:
    """Definitions to train and to validate on, and a WordPiece vocabulary of the former; made once in a process."""
    train, val = hold_out(read_glosses(), val_fraction, seed)
    return train_wordpiece((gloss.text for gloss in train), vocab_size), train, val
