"""WordNet's glosses with their subjects: a classification of short texts that needs no download."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig

from bamboo.data import SampledData
from bamboo.errors import InputError
from bamboo.sampling import NOTHING, Loader
from bamboo.seeds import derive_seed
from bamboo.text.encoder import longest_sequence
from bamboo.text.tokenizer import special_ids
from bamboo.text.wordpiece import train_wordpiece


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


def split_glosses(val_fraction: float, seed: int) -> tuple[list[Gloss], list[Gloss]]:
    """Definitions to train and to validate on."""
    parts: tuple[list[Gloss], list[Gloss]] = [], []
    for number, gloss in enumerate(read_glosses()):
        parts[derive_seed(seed, "held out", number) / 2**63 < val_fraction].append(gloss)
    return parts


@lru_cache(maxsize=4)
def gloss_tokenizer(vocab_size: int, val_fraction: float, seed: int) -> Tokenizer:
    """A WordPiece vocabulary of the definitions to train on; made once in a process."""
    return train_wordpiece((gloss.text for gloss in split_glosses(val_fraction, seed)[0]), vocab_size)


class Row(NamedTuple):
    """A text as token numbers, and its class."""

    ids: list[int]
    label: int


class Rows(Dataset[Row | None]):
    """Tokenised texts by number, alone or as `(number, epoch)`; None for `NOTHING`."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> Row | None:
        number = key if isinstance(key, int) else key[0]
        return None if number == NOTHING else self.rows[number]


class GlossSubjects(SampledData):
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
        super().__init__(batch_size, num_workers, seed)
        self.asked_size, self.length, self.val_fraction = vocab_size, length, val_fraction
        if length < 4 or batch_size < 1 or not 0 < val_fraction < 1:
            raise InputError(
                "length must be at least 4, batch_size positive and val_fraction a share of one, got "
                f"{length}, {batch_size} and {val_fraction}"
            )

    @cached_property
    def parts(self) -> tuple[list[Gloss], list[Gloss]]:
        """Definitions to train and to validate on."""
        return split_glosses(self.val_fraction, self.seed)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Trained on the definitions to train on."""
        return gloss_tokenizer(self.asked_size, self.val_fraction, self.seed)

    def rows(self, glosses: Sequence[Gloss]) -> Rows:
        """Definitions as tokens and classes."""
        ids = special_ids(self.tokenizer)
        encoded = self.tokenizer.encode_batch([gloss.text for gloss in glosses], add_special_tokens=False)
        return Rows(
            [
                Row([ids["cls"], *one.ids[: self.length - 2], ids["sep"]], int(gloss.synset[1:3]))
                for one, gloss in zip(encoded, glosses, strict=True)
            ]
        )

    def check(self, config: PreTrainedConfig) -> None:
        """Raises `InputError` where a model of this configuration cannot read these texts."""
        size = self.tokenizer.get_vocab_size()
        if size > config.vocab_size:
            raise InputError(f"the texts have {size} tokens and the model {config.vocab_size}: set vocab_size alike")
        if self.length > longest_sequence(config):
            raise InputError(
                f"data.init_args.length {self.length} is above the model's {longest_sequence(config)} positions"
            )

    def train_dataloader(self) -> Loader:
        """Shuffled definitions of this process's share."""
        return self.train_loader(self.rows(self.parts[0]), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out definitions, each of them once over all processes."""
        return self.eval_loader(self.rows(self.parts[1]))

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """`collate` for texts of this length and tokenizer."""
        return partial(collate, self.length, special_ids(self.tokenizer))


def collate(length: int, special: dict[str, int], rows: Sequence[Row | None]) -> dict[str, Any]:
    """A batch of texts padded to `length`, those that are None left out."""
    given = [row for row in rows if row is not None]
    ids = torch.full((len(given), length), special["pad"], dtype=torch.int64)
    for place, row in enumerate(given):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
    return {
        "input_ids": ids,
        "attention_mask": ids != special["pad"],
        "special_tokens_mask": torch.isin(ids, torch.tensor(list(special.values()))),
        "label": torch.tensor([row.label for row in given], dtype=torch.int64),
    }
